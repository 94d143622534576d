#include "graph/passes/recompute.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

namespace tenon {
namespace {

bool is_backward(const Node& node) { return node.gradient || node.recomputed; }

class RegionWriter {
 public:
  RegionWriter(Graph& graph, std::int32_t region, std::vector<NodeId> nodes)
      : graph_(graph), region_(region), nodes_(std::move(nodes)) {}

  int run() {
    std::set<NodeId> needed;
    std::size_t first_use = graph_.order().size();
    for (NodeId id : nodes_) {
      for (ValueId value : graph_.node(id).outputs) {
        if (is_kept(value)) continue;
        for (const Use& use : graph_.value(value).uses) {
          if (!is_backward(graph_.node(use.node))) continue;
          first_use = std::min(first_use, graph_.position(use.node));
          need(id, needed);
        }
      }
    }
    if (!needed.empty()) write(needed, first_use);
    return static_cast<int>(needed.size());
  }

 private:
  bool in_region(NodeId id) const {
    const Node& node = graph_.node(id);
    return node.region == region_ && !is_backward(node);
  }

  static bool is_rederived(const Node& node) { return !node.op->rederived_by.empty(); }

  /// A run returns or stores it, the forward pass reads it outside of a region that keeps its results,
  /// or the first result is made of it.
  bool is_kept(ValueId value) const {
    const NodeId producer = graph_.value(value).producer;
    if (producer != kNone && is_rederived(graph_.node(producer)) &&
        graph_.node(producer).outputs[0] != value) {
      return true;
    }
    const auto& uses = graph_.value(value).uses;
    const bool keeps_results = !graph_.discards_results(region_);
    return std::any_of(uses.begin(), uses.end(),
                       [&](const Use& use) {
                         return keeps_results && !is_backward(graph_.node(use.node)) &&
                                !in_region(use.node);
                       }) ||
           graph_.is_output(value);
  }

  void need(NodeId id, std::set<NodeId>& needed) const {
    if (!needed.insert(id).second) return;
    if (is_rederived(graph_.node(id))) return;  // from what is kept
    for (ValueId input : graph_.node(id).inputs) {
      if (input == kNone) continue;
      const NodeId producer = graph_.value(input).producer;
      if (producer != kNone && in_region(producer) && !is_kept(input)) need(producer, needed);
    }
  }

  void write(const std::set<NodeId>& needed, std::size_t position) {
    std::unordered_map<ValueId, ValueId> second;
    for (NodeId id : nodes_) {
      if (!needed.contains(id)) continue;
      const Node first = graph_.node(id);
      std::vector<ValueId> inputs = first.inputs;
      for (ValueId& input : inputs) {
        const auto known = second.find(input);
        if (known != second.end()) input = known->second;
      }
      const Op& op = is_rederived(first) ? get_op(first.op->rederived_by) : *first.op;
      if (is_rederived(first)) inputs = {first.outputs[1]};
      const NodeId copy =
          graph_.add_node(op, std::move(inputs), first.attrs, first.call, position++);
      graph_.rename(copy, first.name + "_again");
      graph_.set_region(copy, region_);
      graph_.mark_recomputed(copy);
      if (!is_rederived(first)) graph_.bind_kernel(copy, first.kernel);
      for (std::size_t i = 0; i < graph_.node(copy).outputs.size(); ++i) {
        if (!is_kept(first.outputs[i])) second[first.outputs[i]] = graph_.node(copy).outputs[i];
      }
    }
    for (const auto& [value, again] : second) redirect(value, again);
  }

  /// Backward reads the second run; the first run's own nodes go on reading the first.
  void redirect(ValueId value, ValueId again) {
    const std::vector<Use> uses = graph_.value(value).uses;
    for (const Use& use : uses) {
      if (is_backward(graph_.node(use.node))) graph_.set_operand(use.node, use.operand, again);
    }
  }

  Graph& graph_;
  const std::int32_t region_;
  const std::vector<NodeId> nodes_;  // of the first run, in program order
};

}  // namespace

int recompute_regions(Graph& graph) {
  std::map<std::int32_t, std::vector<NodeId>> regions;
  std::vector<std::int32_t> last_first;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (node.region == kNone || is_backward(node)) continue;
    std::erase(last_first, node.region);
    last_first.insert(last_first.begin(), node.region);
    regions[node.region].push_back(id);
  }
  int written = 0;
  // Backward reaches the last region first, whose second run may read what an earlier one keeps.
  for (std::int32_t region : last_first) {
    written += RegionWriter(graph, region, regions.at(region)).run();
  }
  return written;
}

}  // namespace tenon
