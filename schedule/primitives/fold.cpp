#include "schedule/primitives/fold.h"

#include <algorithm>
#include <vector>

#include "graph/tracer.h"
#include "schedule/rewriting/state.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/ops/norm_attributes.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

// Operands of batch_norm, and its results.
enum Operand : std::size_t { kInput, kRunningMean, kRunningVar, kWeight, kBias };
enum Result : std::size_t { kNormalized, kMean, kFactor, kNewMean, kNewVar };
// Operands of conv2d and linear.
constexpr std::size_t kProductWeight = 1;
constexpr std::size_t kProductBias = 2;

/// A batch norm and what it normalizes.
struct Pair {
  Node norm;
  Node product;
};

bool is_read(const Graph& graph, ValueId id) {
  return graph.is_output(id) || !graph.value(id).uses.empty();
}

void check_read_by_norm_alone(const Graph& graph, const Pair& pair) {
  const ValueId result = pair.product.outputs[0];
  const std::string name = graph.full_name(pair.product.id);
  for (const Use& use : graph.value(result).uses) {
    TENON_CHECK(use.node == pair.norm.id, ScheduleError,
                "{} is read by {} too, which needs it as it is", name, graph.full_name(use.node));
  }
  TENON_CHECK(!graph.is_output(result), ScheduleError, "{} is an output of the model", name);
}

/// Whether a value is made of parameters, buffers and constants alone.
bool is_made_of_state(const Graph& graph, ValueId id) {
  if (id == kNone) return true;
  const Value& value = graph.value(id);
  if (value.producer == kNone) return value.kind != ValueKind::input;
  const Node& node = graph.node(value.producer);
  return !node.op->has(Trait::random) &&
         std::all_of(node.inputs.begin(), node.inputs.end(),
                     [&](ValueId input) { return is_made_of_state(graph, input); });
}

void check_evaluates(const Graph& graph, const Node& norm, bool training) {
  const DropoutMode mode = norm.attrs.as<BatchNormAttrs>().mode;
  const std::string name = graph.full_name(norm.id);
  TENON_CHECK(mode != DropoutMode::train && norm.inputs[kRunningMean] != kNone, ScheduleError,
              "{} normalizes by its batch; what it computes is known only in evaluation, by "
              "running statistics",
              name);
  if (mode == DropoutMode::eval) return;
  const auto held = graph.facts().held_mode();
  TENON_CHECK(!held.value_or(training), ScheduleError,
              "{} normalizes by its batch, as the model is in training mode; call eval() on it and "
              "schedule it again",
              name);
}

/// ScheduleError unless the product of `norm` can do what it does.
Pair pair_of(const Graph& graph, const Node& norm, bool training) {
  const std::string name = graph.full_name(norm.id);
  check_evaluates(graph, norm, training);
  const ValueId input = norm.inputs[kInput];
  const NodeId producer = graph.value(input).producer;
  TENON_CHECK(producer != kNone, ScheduleError,
              "{} reads {}; needed the result of a conv2d or linear", name,
              graph.value_name(input));
  const Pair pair{norm, graph.node(producer)};
  const std::string& op = pair.product.op->name;
  TENON_CHECK(op == "conv2d" || op == "linear", ScheduleError,
              "{} reads {}, a {}; needed a conv2d or linear", name, graph.full_name(producer), op);
  const int rank = graph.value(input).spec.shape.rank();
  TENON_CHECK(op == "conv2d" || rank == 2, ScheduleError,
              "{} normalizes axis 1 of {} axes; the features of {} are the last axis", name, rank,
              graph.full_name(producer));
  check_read_by_norm_alone(graph, pair);
  for (const std::size_t operand : {kProductWeight, kProductBias}) {
    const ValueId value = pair.product.inputs[operand];
    TENON_CHECK(is_made_of_state(graph, value), ScheduleError,
                "{} of {} is {}, which every run makes anew",
                operand == kProductWeight ? "the weight" : "the bias", graph.full_name(producer),
                graph.value_name(value));
  }
  for (const Result result : {kMean, kFactor}) {
    TENON_CHECK(!is_read(graph, norm.outputs[result]), ScheduleError,
                "the statistics of {} are read", name);
  }
  for (const NodeId id : {norm.id, producer}) {
    const ModuleCall& call = graph.call(graph.node(id).call);
    TENON_CHECK(!call.has_hooks, ScheduleError, "module '{}' has a hook", call.path);
  }
  return pair;
}

/// The tensors of the folded product: its weight and bias.
std::pair<Tensor, Tensor> folded(GraphBuilder& builder, const Pair& pair) {
  const auto norm = [&](Operand operand) { return builder.tensor(pair.norm.inputs[operand]); };
  const Tensor weight = builder.tensor(pair.product.inputs[kProductWeight]);
  const Tensor bias = builder.tensor(pair.product.inputs[kProductBias]);
  const DType dtype = weight.dtype();
  const DType sums = accumulation_dtype(dtype);
  const auto wide = [&](const Tensor& tensor) {
    return dtype == sums ? tensor : cast(tensor, sums);
  };
  const auto narrow = [&](const Tensor& tensor) {
    return dtype == sums ? tensor : cast(tensor, dtype);
  };
  Tensor scale = rsqrt(wide(norm(kRunningVar)) + pair.norm.attrs.as<BatchNormAttrs>().eps);
  if (const Tensor factor = norm(kWeight)) scale = wide(factor) * scale;
  Shape columns{weight.size(0)};
  for (int axis = 1; axis < weight.dim(); ++axis) columns.push_back(1);
  const Tensor folded_weight = wide(weight) * reshape(scale, columns);
  const Tensor mean = wide(norm(kRunningMean));
  Tensor addend = (bias ? wide(bias) - mean : -mean) * scale;
  if (const Tensor shift = norm(kBias)) addend = addend + wide(shift);
  return {narrow(folded_weight), narrow(addend)};
}

void fold_pair(Graph& graph, const Pair& pair, const std::string& name) {
  const std::int32_t region = detail::common_region(graph, {pair.product.id, pair.norm.id});
  const ValueId input = pair.product.inputs[0];
  CallId parent = graph.visible_call(pair.product.id);
  while (!graph.is_within(graph.visible_call(pair.norm.id), parent)) {
    parent = graph.call(parent).parent;
  }
  ModuleCall call;
  call.parent = parent;
  call.path = graph.unique_call_path(graph.call(parent).path, name);
  call.type = name;
  call.repr = pair.product.attrs.to_string();
  call.inputs = {input};
  const CallId own = graph.add_call(std::move(call));
  GraphBuilder builder(graph, graph.position(pair.product.id), own);
  Tensor result;
  {
    const InterpreterGuard guard(builder);
    const auto [weight, bias] = folded(builder, pair);
    const Tensor operands[] = {builder.tensor(input), weight, bias};
    result = apply(*pair.product.op, operands, pair.product.attrs)[0];
  }
  for (const NodeId id : builder.added()) graph.set_region(id, region);
  const ValueId now = builder.value_of(result, name);
  detail::check_same_spec(graph, pair.norm.outputs[kNormalized], now, name);
  graph.mutable_call(own).outputs = {now};
  graph.replace_all_uses(pair.norm.outputs[kNormalized], now);
  // In evaluation the running statistics stay.
  for (const Result moved : {kNewMean, kNewVar}) {
    graph.replace_all_uses(pair.norm.outputs[moved],
                           pair.norm.inputs[moved == kNewMean ? kRunningMean : kRunningVar]);
  }
  graph.eliminate_dead_code();
}

}  // namespace

void fold_matches(Graph& graph, const Matches& matches, const std::string& name, bool training) {
  detail::check_current(graph, matches);
  detail::check_disjoint(graph, matches);
  bool follows = false;
  for (const Subgraph& match : matches) {
    bool found = false;
    for (const NodeId id : match.nodes) {
      if (!graph.has_node(id) || graph.node(id).op->name != "batch_norm") continue;
      const Node norm = graph.node(id);
      follows = follows || norm.attrs.as<BatchNormAttrs>().mode == DropoutMode::follow;
      fold_pair(graph, pair_of(graph, norm, training), name);
      found = true;
    }
    TENON_CHECK(found, ScheduleError, "there is no batch_norm in {}", match.names.at(0).second);
  }
  if (follows && !graph.facts().held_mode()) {
    graph.mutable_facts().add(
        {"a batch norm that was folded", nullptr, nullptr, DropoutMode::follow, false});
  }
}

}  // namespace tenon
