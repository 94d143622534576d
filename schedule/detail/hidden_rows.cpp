#include "schedule/detail/hidden_rows.h"

#include <algorithm>
#include <vector>

#include "graph/tracer.h"
#include "tensor/detail/attention_rules.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"

namespace tenon::detail {
namespace {

constexpr std::size_t kMask = 3;  // attention's operand

bool has_mask(const Node& node) {
  static const Op& attention = get_op("scaled_dot_product_attention");
  return node.op == &attention && node.inputs.size() > kMask && node.inputs[kMask] != kNone;
}

bool is_softmax(const Node& node) {
  static const Op& softmax = get_op("softmax");
  return node.op == &softmax;
}

/// The nodes of `graph` that `other` has not and for which `holds`.
std::vector<NodeId> nodes_missing_in(const Graph& other, const Graph& graph,
                                     bool (*holds)(const Node&)) {
  std::vector<NodeId> missing;
  for (const NodeId id : graph.order()) {
    if (!other.has_node(id) && holds(graph.node(id))) missing.push_back(id);
  }
  return missing;
}

}  // namespace

bool turns_hidden_rows_to_zeros(const Graph& before, const Graph& after) {
  return !nodes_missing_in(before, after, has_mask).empty() &&
         !nodes_missing_in(after, before, is_softmax).empty();
}

Graph with_zeros_for_hidden_rows(const Graph& before, const Graph& after) {
  Graph result = before;
  result.own_guards();
  for (const NodeId id : nodes_missing_in(after, before, is_softmax)) {
    const Node node = result.node(id);
    GraphBuilder builder(result, result.position(id), node.call);
    const InterpreterGuard guard(builder);
    const Tensor zeroed =
        ops::softmax_or_zeros(builder.tensor(node.inputs[0]), node.attrs.as<AxisAttrs>().dim);
    result.replace_all_uses(node.outputs[0], builder.value_of(zeroed, node.op->name));
    result.erase_node(id);
  }
  return result;
}

bool loses_masked_attention(const Graph& before, const Graph& after) {
  return !nodes_missing_in(after, before, has_mask).empty();
}

std::set<ValueId> additive_mask_inputs(const Graph& graph) {
  std::set<ValueId> inputs;
  for (const NodeId id : graph.order()) {
    if (!has_mask(graph.node(id))) continue;
    ValueId source = graph.node(id).inputs[kMask];
    while (graph.value(source).kind == ValueKind::result) {
      const Node& producer = graph.node(graph.value(source).producer);
      if (!producer.op->has(Trait::view)) break;
      source = producer.inputs[0];
    }
    const Value& value = graph.value(source);
    if (value.kind == ValueKind::input && is_floating(value.spec.dtype)) inputs.insert(source);
  }
  return inputs;
}

}  // namespace tenon::detail
