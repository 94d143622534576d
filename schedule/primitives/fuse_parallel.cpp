#include "schedule/primitives/fuse_parallel.h"

#include <algorithm>
#include <unordered_set>

#include "graph/tracer.h"
#include "schedule/rewriting/mapped_weights.h"
#include "schedule/rewriting/state.h"
#include "tensor/functional.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

constexpr std::size_t kInput = 0;
constexpr std::size_t kWeight = 1;
constexpr std::size_t kBias = 2;

/// The linear nodes of one input, in match order.
struct Group {
  ValueId input = kNone;
  std::vector<NodeId> nodes;
};

void check_linear(const Graph& graph, NodeId id) {
  static const Op& linear = get_op("linear");
  const Node& node = graph.node(id);
  TENON_CHECK(node.op == &linear, ScheduleError, "fuse_parallel joins linear nodes; {} is {}",
              graph.full_name(id), node.op->name);
  for (std::size_t operand : {kWeight, kBias}) {
    const ValueId value = node.inputs[operand];
    TENON_CHECK(value == kNone || graph.value(value).kind == ValueKind::parameter, ScheduleError,
                "{} of {} is {}, not a parameter", operand == kWeight ? "the weight" : "the bias",
                graph.full_name(id), graph.value_name(value));
  }
}

std::vector<Group> group_by_input(const Graph& graph, const Matches& matches) {
  std::vector<Group> groups;
  for (const Subgraph& match : matches) {
    for (NodeId id : match.nodes) {
      check_linear(graph, id);
      const ValueId input = graph.node(id).inputs[kInput];
      const auto known = std::find_if(groups.begin(), groups.end(),
                                      [&](const Group& group) { return group.input == input; });
      if (known == groups.end()) {
        groups.push_back({input, {id}});
      } else {
        known->nodes.push_back(id);
      }
    }
  }
  return groups;
}

/// The parameters in operand `operand` of the group's nodes; empty when there is no bias.
std::vector<ValueId> operands_of(const Graph& graph, const Group& group, std::size_t operand) {
  std::vector<ValueId> ids;
  std::string with;
  std::string without;
  for (NodeId node : group.nodes) {
    const ValueId id = graph.node(node).inputs[operand];
    (id == kNone ? without : with) = graph.full_name(node);
    if (id != kNone) ids.push_back(id);
  }
  TENON_CHECK(ids.empty() || ids.size() == group.nodes.size(), ScheduleError,
              "{} has a bias and {} has none", with, without);
  return ids;
}

Tensor joined(Graph& graph, GraphBuilder& builder, const std::vector<ValueId>& parameters,
              const char* name) {
  if (parameters.empty()) return {};
  std::vector<Tensor> tensors;
  for (ValueId id : parameters) tensors.push_back(builder.tensor(id));
  const Tensor result = cat(tensors, 0);
  graph.rename(builder.added().back(), name);
  return result;
}

void fuse_group(Graph& graph, const Group& group, const std::unordered_set<ValueId>& known,
                const std::string& name) {
  TENON_CHECK(group.nodes.size() > 1, ScheduleError,
              "{} reads {} alone; needed at least two linear nodes of one input",
              graph.full_name(group.nodes[0]), graph.value_name(group.input));
  const std::vector<ValueId> weights = operands_of(graph, group, kWeight);
  const std::vector<ValueId> biases = operands_of(graph, group, kBias);
  const std::unordered_set<NodeId> nodes(group.nodes.begin(), group.nodes.end());
  for (const auto* parameters : {&weights, &biases}) {
    detail::check_joinable(graph, *parameters, nodes, known, "the joined weight");
  }
  const std::int32_t region = detail::common_region(graph, group.nodes);

  CallId parent = graph.visible_call(group.nodes[0]);
  for (NodeId id : group.nodes) {
    while (!graph.is_within(graph.visible_call(id), parent)) parent = graph.call(parent).parent;
  }
  ModuleCall call;
  call.parent = parent;
  call.path = graph.unique_call_path(graph.call(parent).path, name);
  call.type = name;
  call.inputs = {group.input};
  const CallId own = graph.add_call(std::move(call));
  GraphBuilder builder(graph, detail::position_after(graph, {group.input}), own);
  std::vector<Tensor> pieces;
  {
    const InterpreterGuard guard(builder);
    const Tensor weight = joined(graph, builder, weights, "weight");
    const Tensor bias = joined(graph, builder, biases, "bias");
    const Tensor all = linear(builder.tensor(group.input), weight, bias);
    Dim start = 0;
    for (ValueId id : weights) {
      const Dim& width = graph.value(id).spec.shape[0];
      pieces.push_back(narrow(all, -1, start, width));
      start += width;
    }
    graph.mutable_call(own).repr =
        fmt::format("in_features={}, out_features={}, bias={}", weight.size(1).to_string(),
                    start.to_string(), biases.empty() ? "False" : "True");
  }
  for (NodeId id : builder.added()) graph.set_region(id, region);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const ValueId old = graph.node(group.nodes[i]).outputs[0];
    const ValueId piece = builder.value_of(pieces[i], name);
    detail::check_same_spec(graph, old, piece, name);
    graph.mutable_call(own).outputs.push_back(piece);
    graph.replace_all_uses(old, piece);
  }
  graph.eliminate_dead_code();
}

}  // namespace

void fuse_parallel_matches(Graph& graph, const Matches& matches, const std::string& name) {
  detail::check_replaceable(graph, matches);
  const auto known = detail::value_set(graph);
  for (Group& group : group_by_input(graph, matches)) {
    // An earlier group may have replaced what this one reads.
    group.input = graph.node(group.nodes[0]).inputs[kInput];
    fuse_group(graph, group, known, name);
  }
}

}  // namespace tenon
