#include "schedule/facts/between.h"

#include <algorithm>
#include <unordered_set>
#include <vector>

namespace tenon::detail {

std::optional<Between> find_between(const Graph& graph, std::span<const NodeId> nodes) {
  const std::unordered_set<NodeId> inside(nodes.begin(), nodes.end());
  std::size_t first = SIZE_MAX;
  for (NodeId id : nodes) first = std::min(first, graph.position(id));
  std::unordered_set<NodeId> seen;
  std::vector<NodeId> pending;
  const auto visit_operands = [&](NodeId id) {
    for (ValueId operand : graph.node(id).inputs) {
      const NodeId producer = operand == kNone ? kNone : graph.value(operand).producer;
      if (producer == kNone || inside.contains(producer)) continue;
      if (graph.position(producer) < first) continue;
      if (seen.insert(producer).second) pending.push_back(producer);
    }
  };
  for (NodeId id : nodes) visit_operands(id);
  while (!pending.empty()) {
    const NodeId id = pending.back();
    pending.pop_back();
    for (ValueId operand : graph.node(id).inputs) {
      if (operand != kNone && inside.contains(graph.value(operand).producer)) {
        return Between{id, operand};
      }
    }
    visit_operands(id);
  }
  return std::nullopt;
}

}  // namespace tenon::detail
