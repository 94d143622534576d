#include "schedule/showing/lineage.h"

#include <deque>
#include <unordered_set>

namespace tenon::detail {

Lineage::Lineage(const Schedule& schedule) : schedule_(schedule) {
  for (std::size_t step = 0; step < schedule.applied().size(); ++step) {
    const auto& log = schedule.graph_before(step + 1).replaced_values();
    auto& replaced = replaced_.emplace_back();
    for (std::size_t i = schedule.graph_before(step).replaced_values().size(); i < log.size();
         ++i) {
      replaced[log[i].first] = log[i].second;
    }
  }
}

NodeId Lineage::stand_in(NodeId id) {
  const auto [entry, is_new] = known_.try_emplace(id, kNone);
  if (!is_new) return entry->second;
  NodeId node = id;
  for (std::size_t step = 0; step < replaced_.size() && node != kNone; ++step) {
    if (!schedule_.graph_before(step + 1).has_node(node)) node = after_step(node, step);
  }
  return entry->second = node;
}

/// Forward from the removed node, through others that went with it, to the first result that the
/// primitive put something in the place of.
NodeId Lineage::after_step(NodeId id, std::size_t step) const {
  const Graph& before = schedule_.graph_before(step);
  const Graph& after = schedule_.graph_before(step + 1);
  const auto& replaced = replaced_[step];
  const auto& outputs = before.node(id).outputs;
  std::deque<ValueId> waiting(outputs.begin(), outputs.end());
  std::unordered_set<ValueId> seen(outputs.begin(), outputs.end());
  while (!waiting.empty()) {
    ValueId value = waiting.front();
    waiting.pop_front();
    auto next = replaced.find(value);
    if (next == replaced.end()) {
      for (const Use& use : before.value(value).uses) {
        if (after.has_node(use.node)) continue;
        for (ValueId output : before.node(use.node).outputs) {
          if (seen.insert(output).second) waiting.push_back(output);
        }
      }
      continue;
    }
    // One primitive may replace what it put in itself.
    for (; next != replaced.end(); next = replaced.find(value)) value = next->second;
    if (after.has_value(value)) return after.value(value).producer;
  }
  return kNone;
}

}  // namespace tenon::detail
