// Computes the calls of ops that a file lists, with their gradients, for compare_errors.py to judge.
//
//   run_op_calls calls.safetensors results.safetensors --device cuda --repeats 100
//
// The file's metadata "calls" is a JSON array of objects:
//
//   name         of the call
//   op           of the registry
//   attributes   {"type": "AttentionAttrs", …every field}; null for an op without
//   inputs       for each operand the name of a tensor of the file, or null
//   axes         for each operand the order in which its axes lie in memory, or null: as listed
//   copies       for each operand how often each of its heads (axis 1) is used, 1 or more; optional
//   cotangent    the name of a tensor like the first result: gradients are wanted; or null
//   wanted       the operands whose gradient is wanted
//   program      true: traced, lowered and run as a Program; false: op by op
//   exact        true: computed on the CPU in float64 too
//
// results.safetensors has "<name>.output", "<name>.gradient <operand>" and, of "exact", the same behind
// "<name>.exact.". --repeats computes each call so often and compares the bits.
#include <algorithm>
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "autograd/autograd.h"
#include "benchmarks/measure.h"
#include "graph/executor.h"
#include "graph/tracer.h"
#include "nn/checkpoint.h"
#include "nn/nn.h"
#include "schedule/joint_graph.h"
#include "schedule/rewriting/state.h"
#include "schedule/saving/attr_json.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/random.h"

namespace {

using namespace tenon;
using nlohmann::ordered_json;

struct Options : bench::CommonOptions {
  std::string calls, results;
  int repeats = 1;
};

struct Call {
  std::string name;
  const Op* op = nullptr;
  Attrs attrs;
  std::vector<Tensor> inputs;  // undefined: absent
  std::vector<std::int64_t> copies;
  Tensor cotangent;
  std::vector<std::int64_t> wanted;
  bool is_program = false, is_exact = false;
};

/// The same elements, lying in memory in the order of `axes`.
Tensor laid_out(const Tensor& tensor, const nlohmann::json& axes) {
  if (axes.is_null()) return tensor;
  const auto order = axes.get<std::vector<std::int64_t>>();
  std::vector<std::int64_t> back(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    back.at(static_cast<std::size_t>(order[i])) = static_cast<std::int64_t>(i);
  }
  return tensor.permute(order).contiguous().permute(back);
}

Call read_call(const nlohmann::json& json, const nn::StateDict& tensors) {
  Call call;
  call.name = json.at("name").get<std::string>();
  call.op = &get_op(json.at("op").get<std::string>());
  call.attrs = detail::attrs_from_json(json.at("attributes"), {});
  for (const auto& input : json.at("inputs")) {
    call.inputs.push_back(input.is_null() ? Tensor() : tensors.at(input.get<std::string>()));
  }
  call.copies = json.value("copies", std::vector<std::int64_t>(call.inputs.size(), 1));
  if (const auto& cotangent = json.at("cotangent"); !cotangent.is_null()) {
    call.cotangent = tensors.at(cotangent.get<std::string>());
  }
  call.wanted = json.at("wanted").get<std::vector<std::int64_t>>();
  call.is_program = json.at("program").get<bool>();
  call.is_exact = json.at("exact").get<bool>();
  return call;
}

/// Each head `times` times in a row, as models write it: (B, H, S, E) -> (B, H·times, S, E).
Tensor with_copies(const Tensor& x, std::int64_t times) {
  if (!x || times == 1) return x;
  const Shape& s = x.shape();
  const Tensor wide = x.unsqueeze(2).expand({s[0], s[1], Dim(times), s[2], s[3]});
  return wide.reshape({s[0], s[1] * Dim(times), s[2], s[3]});
}

/// The first result, of the operands that are present.
Tensor forward_of(const Call& call, std::span<const Tensor> operands) {
  std::vector<Tensor> used;
  std::size_t next = 0;
  for (std::size_t i = 0; i < call.inputs.size(); ++i) {
    used.push_back(call.inputs[i] ? with_copies(operands[next++], call.copies.at(i)) : Tensor());
  }
  return tenon::apply(*call.op, used, call.attrs).at(0);
}

struct CallModule : nn::Module {
  explicit CallModule(const Call& given) : call(given) {}
  Tensor forward(const std::vector<Tensor>& operands) const { return forward_of(call, operands); }
  const Call& call;
};

/// One call on one device: computed as often as asked for, always with the same random numbers.
class Work {
 public:
  Work(const Call& call, const nlohmann::json& axes, Device device, bool in_float64) : call_(call) {
    const auto place = [&](const Tensor& source, std::size_t i) {
      const bool widens = in_float64 && is_floating(source.dtype());
      const Tensor moved = (widens ? source.to(DType::float64) : source).to(device);
      return laid_out(moved, i < axes.size() ? axes[i] : nlohmann::json());
    };
    for (std::size_t i = 0; i < call.inputs.size(); ++i) {
      if (!call.inputs[i]) continue;
      operands_.push_back(place(call.inputs[i], i));
      is_wanted_.push_back(std::ranges::count(call.wanted, static_cast<std::int64_t>(i)) > 0);
    }
    if (call.cotangent) cotangent_ = place(call.cotangent, call.inputs.size());
    if (call.is_program) lower_call();
  }

  /// The first result, and the gradients of the wanted operands.
  std::vector<Tensor> run() const {
    manual_seed(2026);
    std::vector<Tensor> results = executor_ ? run_program() : run_eagerly();
    for (Tensor& result : results) result = result.cpu().contiguous();
    return results;
  }

  /// Kernels of the Program, in its order.
  std::vector<std::string> kernels() const {
    std::vector<std::string> names;
    if (!executor_) return names;
    for (const InstructionInfo& info : executor_->program(program_inputs(), true).instructions()) {
      names.push_back(info.kernel);
    }
    return names;
  }

 private:
  void lower_call() {
    const auto module = nn::make<CallModule>(call_);
    const ModuleTree tree = detail::module_tree(*module);
    std::vector<ExampleInput> examples;
    for (const Tensor& operand : operands_) examples.emplace_back(operand);
    Graph graph = trace(tree, examples, [&](std::span<const Tensor> inputs) {
      return std::vector{module(std::vector<Tensor>(inputs.begin(), inputs.end()))};
    });
    if (cotangent_) graph = differentiate(graph, tree, {}, &is_wanted_).graph;
    executor_ = std::make_unique<Executor>(std::move(graph));
  }

  std::vector<Tensor> program_inputs() const {
    std::vector<Tensor> inputs = operands_;
    if (cotangent_) inputs.push_back(cotangent_);
    return inputs;
  }

  std::vector<Tensor> run_program() const {
    return executor_->run(program_inputs(), /*training=*/true);
  }

  std::vector<Tensor> run_eagerly() const {
    std::vector<Tensor> leaves, wanted;
    for (std::size_t i = 0; i < operands_.size(); ++i) {
      leaves.push_back(operands_[i].detach());
      if (cotangent_ && is_wanted_[i]) wanted.push_back(leaves[i].requires_grad_());
    }
    std::vector<Tensor> results = {forward_of(call_, leaves)};
    if (wanted.empty()) return results;
    for (const Tensor& gradient :
         grad(std::span(results.data(), 1), wanted, std::span(&cotangent_, 1))) {
      results.push_back(gradient);
    }
    return results;
  }

  const Call& call_;
  std::vector<Tensor> operands_;  // those that are present
  std::vector<bool> is_wanted_;
  Tensor cotangent_;
  std::unique_ptr<Executor> executor_;
};

bool have_equal_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return std::ranges::equal(a, b, [](const Tensor& x, const Tensor& y) {
    const auto bytes = static_cast<std::size_t>(x.layout().numel()) * size_of(x.dtype());
    return bytes == 0 || std::memcmp(x.view_of_data().data, y.view_of_data().data, bytes) == 0;
  });
}

void add_results(nn::StateDict& results, const std::string& prefix, const Call& call,
                 const std::vector<Tensor>& computed) {
  results.add(prefix + ".output", computed[0]);
  for (std::size_t i = 1; i < computed.size(); ++i) {
    results.add(prefix + ".gradient " + std::to_string(call.wanted[i - 1]), computed[i]);
  }
}

ordered_json run_call(const nlohmann::json& json, const nn::StateDict& tensors, Device device,
                      int repeats, nn::StateDict& results) {
  const Call call = read_call(json, tensors);
  const nlohmann::json axes = json.value("axes", nlohmann::json::array());
  const Work work(call, axes, device, false);
  const std::vector<Tensor> first = work.run();
  add_results(results, call.name, call, first);
  int different = 0;
  for (int i = 1; i < repeats; ++i) different += have_equal_bits(first, work.run()) ? 0 : 1;
  if (call.is_exact) {
    add_results(results, call.name + ".exact", call, Work(call, axes, kCpu, true).run());
  }
  return {{"name", call.name}, {"kernels", work.kernels()}, {"different_repeats", different}};
}

ordered_json run(const Options& options) {
  const Device device = options.chosen_device();
  const nn::Checkpoint file = nn::load_checkpoint(options.calls);
  const auto text = file.metadata.string("calls");
  if (!text) throw std::runtime_error("no \"calls\" in the metadata of " + options.calls);
  nn::Checkpoint results;
  ordered_json notes = ordered_json::array();
  for (const auto& call : nlohmann::json::parse(*text)) {
    try {
      notes.push_back(run_call(call, file.tensors, device, options.repeats, results.tensors));
    } catch (const std::exception& error) {
      notes.push_back({{"name", call.at("name")}, {"error", error.what()}});
    }
  }
  nn::save_checkpoint(options.results, results);
  return {{"device", device.to_string()}, {"calls", notes}};
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  tenon::CommandLine line("Computes the calls of ops that a file lists, with their gradients");
  line.option("CALLS", options.calls, "a .safetensors file").existing_file().required();
  line.option("RESULTS", options.results, "the .safetensors file to write").required();
  options.add_to(line);
  line.option("--repeats", options.repeats, "how often to compute each; the bits must be the same")
      .positive();
  return tenon::bench::run_program(line, argc, argv, options, [&] { return run(options); });
}
