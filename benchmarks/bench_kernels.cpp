// Single operations, each as a Program of its own: memory-bound kernels, products, the optimizer's update
// and the loss behind a head. Backward rows compute gradients alone, by every input and parameter.
//
//   bench_kernels --filter 'layer_norm|gemm' --json
//
// One row an operation: ms (back to back, inputs that rotate through more than a cache holds), bytes of
// all operands and results, operations, floor_ms (bench::floor_ms) and the kernels that ran.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <regex>

#include "benchmarks/gpt2_model.h"
#include "benchmarks/measure.h"
#include "schedule/joint_graph.h"
#include "schedule/rewriting/state.h"
#include "schedule/schedules.h"
#include "tensor/device_backend.h"
#include "tensor/interpreter.h"
#include "tensor/ops/norm_attributes.h"

namespace {

using namespace tenon;
using nlohmann::ordered_json;
using Tensors = std::span<const Tensor>;

struct Options : bench::CommonOptions {
  std::string filter = ".*";
  bool quick = false;
};

struct Operation {
  std::string name;
  std::vector<Shape> inputs;
  std::vector<Shape> parameters;
  std::function<Tensor(Tensors inputs, Tensors parameters)> call;
  bool backward = false;
  std::int64_t classes = 0;  // of the last input, which then holds their numbers; 0: no such input
  bool training = false;
};

/// An operation as a module.
struct OperationModule : nn::Module {
  OperationModule(const Operation& what, const std::vector<Tensor>& tensors) : operation(what) {
    for (const Tensor& tensor : tensors) {
      list.push_back(register_parameter("p" + std::to_string(list.size()), tensor));
    }
  }
  Tensor forward(const std::vector<Tensor>& inputs) const { return operation.call(inputs, list); }

  const Operation operation;
  std::vector<Tensor> list;
};

/// The optimizer's update of a model from given gradients; returns their norm where it clips.
struct UpdateModule : nn::Module {
  UpdateModule(const bench::Gpt2Options& sizes, Device device, DType dtype, bool clips)
      : model(add<bench::Gpt2>("model", sizes)) {
    model->to(device, dtype);
    optimizer = std::make_unique<nn::AdamW>(
        model->named_parameters(), nn::AdamWOptions{.weight_decay = 0.1},
        nn::OptimizerOptions{.max_grad_norm = clips ? 1.0 : 0.0});
  }
  std::vector<Tensor> forward(const std::vector<Tensor>& gradients) const {
    const NoGradGuard no_grad;
    const Tensor norm = optimizer->update(gradients);
    return norm ? std::vector{norm} : std::vector<Tensor>{};
  }

  nn::Child<bench::Gpt2> model;
  std::unique_ptr<nn::AdamW> optimizer;
};

/// What is run again and again, on inputs that take turns.
struct Work {
  std::unique_ptr<Executor> executor;
  std::vector<std::vector<Tensor>> inputs;
  bool training = false;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : o_(options),
        device_(options.chosen_device()),
        dtype_(parse_dtype(options.dtype)),
        rows_(options.quick ? 64 : 32768),
        generator_(options.seed) {}

  ordered_json run() {
    ordered_json rows = ordered_json::array();
    const std::regex wanted(o_.filter);
    for (const Operation& operation : operations()) {
      if (std::regex_search(operation.name, wanted)) {
        rows.push_back(measure(operation.name, make(operation)));
      }
    }
    for (const bool clips : {false, true}) {
      const std::string name = clips ? "adamw_124m_clipped" : "adamw_124m";
      if (std::regex_search(name, wanted)) rows.push_back(measure(name, make_adamw(clips)));
    }
    return {{"device", device_backend(device_.type).device_name(device_.index)}, {"rows", rows}};
  }

 private:
  std::vector<Operation> operations() const;
  void add_norms(std::vector<Operation>& list) const;
  void add_pointwise(std::vector<Operation>& list) const;
  void add_products(std::vector<Operation>& list) const;

  std::vector<Tensor> random_inputs(const std::vector<Shape>& shapes, std::int64_t classes) {
    std::vector<Tensor> tensors;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      if (classes > 0 && i + 1 == shapes.size()) {
        const Tensor numbers = uniform(shapes[i], 0, static_cast<double>(classes),
                                       {DType::float64, kCpu}, &generator_);
        tensors.push_back(cast(numbers, DType::int64).to(device_));
      } else {
        tensors.push_back(randn(shapes[i], {dtype_, kCpu}, &generator_).to(device_));
      }
    }
    return tensors;
  }

  void rotate(Work& work, const std::function<std::vector<Tensor>()>& make_set) const {
    work.inputs.push_back(make_set());
    std::size_t bytes = 0;
    for (const Tensor& t : work.inputs[0]) bytes += t.storage()->bytes();
    const std::int64_t sets = o_.quick ? 2 : bench::rotation_length(bytes);
    while (static_cast<std::int64_t>(work.inputs.size()) < sets) work.inputs.push_back(make_set());
  }

  Work make(const Operation& operation) {
    const std::vector<Tensor> parameters = random_inputs(operation.parameters, 0);
    const auto model = nn::make<OperationModule>(operation, parameters);
    model->requires_grad_();
    const std::vector<Tensor> example = random_inputs(operation.inputs, operation.classes);
    Schedule sch =
        create_schedule(model.shared(), call_of(model), {example.begin(), example.end()});
    schedule(sch);
    Work work;
    work.training = operation.training || operation.backward;
    std::optional<TensorSpec> output;  // whose gradient backward starts from
    if (operation.backward) {
      output = Executor(sch.graph()).run(example)[0].spec();
      work.executor = std::make_unique<Executor>(gradients_of(sch));
    } else {
      work.executor = std::make_unique<Executor>(build(sch, {.verify = false}));
    }
    rotate(work, [&] {
      std::vector<Tensor> set = random_inputs(operation.inputs, operation.classes);
      if (output) {
        set.push_back(randn(output->shape, {output->dtype, kCpu}, &generator_).to(device_));
      }
      return set;
    });
    return work;
  }

  template <class M>
  static ForwardFunction call_of(const nn::Child<M>& module) {
    return [module](Tensors inputs) -> std::vector<Tensor> {
      const auto result = module(std::vector<Tensor>(inputs.begin(), inputs.end()));
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(result)>, Tensor>) {
        return {result};
      } else {
        return result;
      }
    };
  }

  /// The ready-made schedule, for what it has a fused form of.
  static void schedule(Schedule& sch) {
    try {
      schedules::gpt(sch);
    } catch (const ScheduleError&) {
      // Nothing to rewrite: one op already.
    }
  }

  /// Backward without the results of forward, as far as it does not read them.
  static Graph gradients_of(const Schedule& sch) {
    GradientGraph gradients = differentiate(sch.graph(), detail::state_tree(sch));
    std::vector<ValueId> wanted;
    for (std::size_t i = 0; i < gradients.outputs.size(); ++i) {
      if (gradients.outputs[i].starts_with("gradient")) {
        wanted.push_back(gradients.graph.outputs()[i]);
      }
    }
    gradients.graph.set_outputs(std::move(wanted));
    gradients.graph.eliminate_dead_code();
    return std::move(gradients.graph);
  }

  /// One update of all parameters of GPT-2, from given gradients.
  Work make_adamw(bool clips) {
    bench::Gpt2Options sizes;
    if (o_.quick) sizes = {.vocabulary = 100, .context = 16, .layers = 1, .hidden = 32, .heads = 2};
    const auto update = nn::make<UpdateModule>(sizes, device_, dtype_, clips);
    ModuleTree tree = detail::module_tree(*update);
    std::vector<ExampleInput> examples;
    std::vector<Shape> shapes;
    for (const auto& [name, tensor] : update->named_parameters()) {
      examples.emplace_back("gradient of " + name, tensor);
      shapes.push_back(tensor.shape());
    }
    for (const auto& [name, tensor] : update->optimizer->state_tensors()) {
      tree.states.push_back({"optimizer." + name, ValueKind::buffer, tensor});
    }
    Graph graph = trace(tree, examples, call_of(update));
    Work work;
    work.executor = std::make_unique<Executor>(std::move(graph));
    work.training = true;
    work.inputs.push_back(random_inputs(shapes, 0));
    return work;
  }

  ordered_json measure(const std::string& name, const Work& work) const {
    const auto turns = static_cast<std::int64_t>(work.inputs.size());
    const bench::StepTimes times = bench::time_steps(device_, 20, turns, [&](std::int64_t i) {
      work.executor->run(work.inputs[static_cast<std::size_t>(i % turns)], work.training);
    });
    Program& program = work.executor->program(work.inputs[0], work.training);
    double bytes = 0;
    ordered_json instructions = ordered_json::array();
    for (const InstructionInfo& info : program.instructions()) {
      bytes += info.bytes;
      instructions.push_back(info.kernel);
    }
    const double floor = bench::floor_ms(program, dtype_);
    const double ms = times.throughput_ms;
    ordered_json row = {{"name", name},
                        {"dtype", tenon::name(dtype_)},
                        {"ms", ms},
                        {"TB/s", bytes / ms * 1e-9},
                        {"TFLOP/s", program.flops() / ms * 1e-9},
                        {"floor_ms", floor},
                        {"share_of_floor", floor / ms},
                        {"bytes", bytes},
                        {"flops", program.flops()},
                        {"kernels", program.count_kernels(work.inputs[0])},
                        {"instructions", instructions}};
    std::cerr << row.dump() << "\n";
    return row;
  }

  const Options& o_;
  const Device device_;
  const DType dtype_;
  const std::int64_t rows_;
  Generator generator_;
};

std::vector<Operation> Bench::operations() const {
  std::vector<Operation> list;
  add_pointwise(list);
  add_norms(list);
  add_products(list);
  return list;
}

void Bench::add_pointwise(std::vector<Operation>& list) const {
  const Shape wide{rows_, 3072};
  const Shape square{rows_ / 4, rows_ / 4};
  const std::int64_t tokens = o_.quick ? 100 : 50304;
  list.push_back({"copy", {wide}, {}, [](Tensors x, Tensors) { return x[0]; }});
  list.push_back({"transpose", {square}, {}, [](Tensors x, Tensors) {
                    return x[0].transpose(0, 1).contiguous();
                  }});
  list.push_back(
      {"cast_to_float32", {wide}, {}, [](Tensors x, Tensors) { return x[0].to(DType::float32); }});
  list.push_back({"column_sum", {wide}, {}, [](Tensors x, Tensors) { return sum(x[0], {0}); }});
  list.push_back({"column_sum_768", {Shape{rows_, 768}}, {}, [](Tensors x, Tensors) {
                    return sum(x[0], {0});
                  }});
  for (const bool backward : {false, true}) {
    const std::string way = backward ? "_backward" : "_forward";
    list.push_back({"gelu" + way,
                    {wide},
                    {},
                    [](Tensors x, Tensors) { return gelu(x[0], Approximate::tanh); },
                    backward});
    list.push_back({"softmax" + way,
                    {Shape{rows_, 1024}},
                    {},
                    [](Tensors x, Tensors) { return softmax(x[0], -1); },
                    backward});
  }
  list.push_back({"embedding_gradient",
                  {Shape{rows_}},
                  {Shape{tokens, 768}},
                  [](Tensors x, Tensors p) { return embedding(x[0], p[0]); },
                  true,
                  tokens});
}

void Bench::add_norms(std::vector<Operation>& list) const {
  constexpr std::int64_t kHidden = 1024;
  const Shape x{rows_, kHidden};
  const Shape row{kHidden};
  for (const bool backward : {false, true}) {
    const std::string way = backward ? "_backward" : "_forward";
    list.push_back({"layer_norm" + way,
                    {x},
                    {row, row},
                    [](Tensors in, Tensors p) { return layer_norm(in[0], p[0], p[1]); },
                    backward});
    list.push_back({"rms_norm" + way,
                    {x},
                    {row},
                    [](Tensors in, Tensors p) { return rms_norm(in[0], {kHidden}, p[0]); },
                    backward});
    list.push_back({"residual_norm" + way,
                    {x, x},
                    {row, row, row},
                    [](Tensors in, Tensors p) {
                      return bias_dropout_residual_layer_norm(in[0], p[0], in[1], p[1], p[2], 0.1);
                    },
                    backward,
                    0,
                    true});
  }
  // The gradient of x + f(layer_norm(x)), as training GPT-2 computes it: x and two gradients are read.
  const Shape gpt2{rows_, 768};
  list.push_back(
      {"layer_norm_backward_add_768", {gpt2, gpt2, gpt2}, {Shape{768}}, [](Tensors in, Tensors p) {
         return apply(get_op("layer_norm_backward_add"), {{in[0], in[1], p[0], in[2]}},
                      NormBackwardAttrs{})[0];
       }});
}

void Bench::add_products(std::vector<Operation>& list) const {
  const std::int64_t shrink = o_.quick ? 128 : 1;
  constexpr std::int64_t kSizes[][3] = {
      {4096, 3072, 1024},  {16384, 3072, 1024}, {16384, 1024, 1024},
      {32768, 2304, 768},  {32768, 768, 3072},  {32768, 3072, 768},
      {32768, 50304, 768}, {4096, 4096, 4096},  {8192, 8192, 8192}};
  for (const auto& [m, n, k] : kSizes) {
    const std::string name =
        "gemm_" + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k);
    list.push_back({name,
                    {Shape{m / shrink, k / shrink}},
                    {Shape{n / shrink, k / shrink}, Shape{n / shrink}},
                    [](Tensors x, Tensors p) { return linear(x[0], p[0], p[1]); }});
  }
  const std::int64_t classes = 50304 / shrink;
  list.push_back({"linear_cross_entropy",
                  {Shape{rows_, 768}, Shape{rows_}},
                  {Shape{classes, 768}},
                  [](Tensors x, Tensors p) {
                    const Tensor logits = linear(x[0], p[0]).to(DType::float32);
                    return cross_entropy(logits, x[1]);
                  },
                  true,
                  classes});
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times single operations");
  Options options;
  line.option("--filter", options.filter, "operations whose name matches this regex");
  line.flag("--quick", options.quick, "tiny sizes, to see that it works");
  options.add_to(line);
  return bench::run_program(line, argc, argv, options, [&] { return Bench(options).run(); });
}
