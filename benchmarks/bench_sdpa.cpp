// Scaled dot-product attention alone, forward or forward and backward, under a mask, as a Program runs it.
//
//   bench_sdpa --batch 4 --seq 4096 --heads 16 --head 128 --mask bool_keys --hidden 50 --mode train --json
//
// Queries, keys and values are (batch, seq, heads, head) in memory, as models have them. --mask: bool_keys and
// additive_keys hide keys of each batch from all queries (additive: -inf, or 0), bool and additive are
// (seq, seq) for all heads and batches, head_bias is (heads, seq, seq), position_bias too but lies in memory
// as (seq, seq, heads), as an embedding of distances gives it, pair_bias is (batch, heads, seq, seq).
// --hidden: percent of the keys that the mask hides, the last ones. --mask-gradient: of additive ones too.
// --key-heads: keys and values have fewer heads, each of which the model repeats for its group of the
// query's; --schedule full (schedules::attention) reads them once, none copies them.
// fwd: the output. train: it and the gradients of queries, keys and values from a given gradient.
// tflops counts all scores, hidden or not: 4·B·N·S²·D, with backward 14·B·N·S²·D.
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>

#include "benchmarks/measure.h"
#include "nn/nn.h"
#include "schedule/joint_graph.h"
#include "schedule/rewriting/state.h"
#include "schedule/schedule.h"
#include "schedule/schedules.h"
#include "schedule/verification.h"
#include "tensor/device_backend.h"

namespace {

using namespace tenon;
using nlohmann::ordered_json;

struct Options : bench::CommonOptions {
  std::int64_t batch = 4, seq = 4096, heads = 16, head = 64;
  std::int64_t key_heads = 0;  // 0: as many as the query's
  std::string schedule = "full";
  std::string mask = "none";
  int hidden = 0;
  bool causal = false;
  bool mask_gradient = false;
  double dropout = 0;
  std::string mode = "fwd";
  std::string kernel;           // "": the chosen one
  std::string backward_kernel;  // the same
  int runs = 20;

  bool trains() const { return mode == "train"; }
  bool is_grouped() const { return key_heads > 0 && key_heads != heads; }
};

struct Attention : nn::Module {
  explicit Attention(const Options& o) : options(o) {
    if (o.mask == "none") return;
    if (o.mask.ends_with("_bias")) {
      Tensor bias = randn({o.heads, o.seq, o.seq});
      if (o.mask == "position_bias") bias = randn({o.seq, o.seq, o.heads});
      if (o.mask == "pair_bias") bias = bias.expand({o.batch, o.heads, o.seq, o.seq}).contiguous();
      keep(bias);
      return;
    }
    const bool of_keys = o.mask.ends_with("_keys");
    const std::int64_t rows = of_keys ? o.batch : o.seq;
    const Tensor positions = arange(o.seq, {DType::int64, kCpu});
    const std::int64_t shown = o.seq - o.seq * o.hidden / 100;
    const Tensor hidden = ge(positions, shown).expand({rows, o.seq});
    Tensor values = lt(positions, shown).expand({rows, o.seq});
    if (o.mask.starts_with("additive")) {
      const Tensor noise = of_keys ? zeros({rows, o.seq}) : randn({rows, o.seq});
      values = masked_fill(noise, hidden, -std::numeric_limits<double>::infinity());
    }
    if (of_keys) values = values.view({o.batch, 1, 1, o.seq});
    keep(values);
  }

  void keep(const Tensor& values) {
    mask = options.mask_gradient ? register_parameter("mask", values)
                                 : register_buffer("mask", values);
  }

  Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v) const {
    const auto heads_first = [](const Tensor& x) { return x.permute({0, 2, 1, 3}); };
    AttentionOptions attention;
    attention.is_causal = options.causal;
    attention.dropout_p = options.dropout;
    const auto for_groups = [&](const Tensor& x) {
      if (!options.is_grouped()) return x;
      const std::int64_t group = options.heads / options.key_heads;
      return x.unsqueeze(2)
          .expand({x.size(0), options.key_heads, group, x.size(2), x.size(3)})
          .reshape({x.size(0), options.heads, x.size(2), x.size(3)});
    };
    const Tensor bias = options.mask == "position_bias" ? mask.permute({2, 0, 1}) : mask;
    return heads_first(scaled_dot_product_attention(heads_first(q), for_groups(heads_first(k)),
                                                    for_groups(heads_first(v)), bias, attention));
  }

  const Options options;
  Tensor mask;
};

/// Forward and backward, the latter bound to the kernel that is asked for.
Graph joint_graph(const Options& o, const Schedule& sch) {
  Graph graph = differentiate(sch.graph(), detail::state_tree(sch)).graph;
  if (o.backward_kernel.empty()) return graph;
  const std::vector<NodeId> nodes = graph.order();
  for (const NodeId id : nodes) {
    if (graph.node(id).op->name == "scaled_dot_product_attention_backward") {
      graph.bind_kernel(id, o.backward_kernel);
    }
  }
  return graph;
}

ordered_json measure(const Options& o) {
  const Device device = o.chosen_device();
  const DType dtype = parse_dtype(o.dtype);
  DeviceBackend& backend = device_backend(device.type);
  manual_seed(o.seed);
  const auto model = nn::make<Attention>(o);
  model->to(device, dtype);
  model->train(o.trains());
  std::vector<Tensor> inputs;
  for (int i = 0; i < (o.trains() ? 4 : 3); ++i) {
    const bool of_keys = o.is_grouped() && (i == 1 || i == 2);
    const Shape shape{o.batch, o.seq, of_keys ? o.key_heads : o.heads, o.head};
    inputs.push_back(randn(shape, {dtype, kCpu}).to(device));
  }
  Schedule sch = create_schedule(model, {{"q", inputs[0]}, {"k", inputs[1]}, {"v", inputs[2]}});
  if (!o.kernel.empty()) {
    const auto is_attention = [](const Node& node) {
      return node.op->name == "scaled_dot_product_attention";
    };
    sch.bind(sch.find(is_attention), o.kernel);
  }
  if (o.is_grouped() && o.schedule == "full") schedules::attention(sch);
  Executor executor = o.trains() ? Executor(joint_graph(o, sch)) : build(sch, {.verify = false});
  Program& program = executor.program(inputs, o.trains());
  const bench::StepTimes times =
      bench::time_steps(device, o.runs, 1, [&](std::int64_t) { executor.run(inputs, o.trains()); });
  bench::profile_if_asked(o, program, inputs);
  ordered_json kernels = ordered_json::array();
  for (const InstructionInfo& info : program.instructions()) kernels.push_back(info.kernel);
  const double pairs = static_cast<double>(o.batch * o.heads) * static_cast<double>(o.seq) *
                       static_cast<double>(o.seq) * static_cast<double>(o.head);
  return {{"device", backend.device_name(device.index)},
          {"dtype", name(dtype)},
          {"batch", o.batch},
          {"seq", o.seq},
          {"heads", o.heads},
          {"key_heads", o.is_grouped() ? o.key_heads : o.heads},
          {"schedule", o.schedule},
          {"head", o.head},
          {"mask", o.mask},
          {"hidden", o.hidden},
          {"mask_gradient", o.mask_gradient},
          {"causal", o.causal},
          {"dropout", o.dropout},
          {"mode", o.mode},
          {"latency_ms", times.latency_ms},
          {"throughput_ms", times.throughput_ms},
          {"tflops", (o.trains() ? 14 : 4) * pairs / times.throughput_ms * 1e-9},
          {"kernels", kernels}};
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times scaled dot-product attention under a mask");
  Options o;
  line.option("--batch", o.batch, "sequences").positive();
  line.option("--seq", o.seq, "their length").positive();
  line.option("--heads", o.heads, "attention heads").positive();
  line.option("--key-heads", o.key_heads, "heads of keys and values").positive();
  line.option("--schedule", o.schedule, "what becomes of repeated heads").one_of({"none", "full"});
  line.option("--head", o.head, "size of a head").positive();
  line.option("--mask", o.mask, "what is hidden, and from whom")
      .one_of({"none", "bool_keys", "additive_keys", "bool", "additive", "head_bias", "pair_bias",
               "position_bias"});
  line.option("--hidden", o.hidden, "percent of the keys that the mask hides").range(0, 100);
  line.flag("--mask-gradient", o.mask_gradient, "in training, the mask is a parameter");
  line.flag("--causal", o.causal, "a query sees no later key");
  line.option("--dropout", o.dropout, "probability, in training").probability();
  line.option("--mode", o.mode, "fwd or train").one_of({"fwd", "train"});
  line.option("--kernel", o.kernel, "the forward's implementation, such as cuda.flash_mma")
      .without_default();
  line.option("--backward-kernel", o.backward_kernel,
              "the gradient's, such as cuda.flash_backward_mma")
      .without_default();
  line.option("--runs", o.runs, "single steps of which the median counts").positive();
  o.add_profile_to(line);
  o.add_to(line);
  return bench::run_program(line, argc, argv, o, [&] { return measure(o); });
}
