#include "schedule/facts/hidden_rows.h"

#include <algorithm>
#include <vector>

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

std::size_t count_masked_attention(const Graph& graph) {
  const auto& order = graph.order();
  return static_cast<std::size_t>(std::count_if(
      order.begin(), order.end(), [&](NodeId id) { return has_mask(graph.node(id)); }));
}

bool has_softmax(const Graph& graph) {
  const auto& order = graph.order();
  return std::any_of(order.begin(), order.end(),
                     [&](NodeId id) { return is_softmax(graph.node(id)); });
}

std::set<ValueId> additive_masks(const Graph& graph, const std::vector<NodeId>& nodes) {
  std::set<ValueId> masks;
  for (const NodeId id : nodes) {
    if (!has_mask(graph.node(id))) continue;
    ValueId mask = graph.node(id).inputs[kMask];
    while (is_floating(graph.value(mask).spec.dtype)) {
      masks.insert(mask);
      const NodeId producer = graph.value(mask).producer;
      if (producer == kNone || graph.node(producer).op->view == nullptr) break;
      mask = graph.node(producer).inputs[0];
    }
  }
  return masks;
}

}  // namespace tenon::detail
