// What a search asks of a Graph over and over, each found once.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "schedule/detail/call_index.h"
#include "schedule/detail/run_results.h"
#include "schedule/matcher.h"

namespace tenon::detail {

/// Nodes: their places, and the calls that they are seen in.
class GraphFacts {
 public:
  GraphFacts(const Graph& g, std::string base)
      : graph(g), run_results(g), path(std::move(base)), below_(g.calls().size(), kUnknown) {
    NodeId last = kNone;
    for (NodeId id : graph.order()) last = std::max(last, id);
    positions_.resize(static_cast<std::size_t>(last + 1));
    visible_.resize(positions_.size(), kUnknown);
    for (std::size_t i = 0; i < graph.order().size(); ++i) {
      positions_[static_cast<std::size_t>(graph.order()[i])] = i;
    }
  }

  std::size_t position(NodeId id) const { return positions_[static_cast<std::size_t>(id)]; }
  std::size_t num_node_ids() const { return positions_.size(); }

  /// The call that a node is seen in.
  CallId home(NodeId id) {
    CallId& known = visible_[static_cast<std::size_t>(id)];
    if (known == kUnknown) known = graph.visible_call(id);
    return known;
  }

  /// The call that a module's call is seen in; kNone for the root's.
  CallId home_of_call(CallId id) const {
    CallId home = graph.call(id).parent;
    for (CallId c = home; c != kNone && !graph.call(c).closed; c = graph.call(c).parent) {
      if (graph.call(c).flattened) home = c;
    }
    return home;
  }

  bool is_seen(CallId id) {
    std::int32_t& known = below_[static_cast<std::size_t>(id)];
    if (known == kUnknown) known = is_below(graph.call(id).path, path) ? 1 : 0;
    return known == 1;
  }

  const Graph& graph;
  const RunResults run_results;
  const std::string path;

 private:
  static constexpr std::int32_t kUnknown = -2;
  std::vector<std::size_t> positions_;  // by node
  std::vector<CallId> visible_;         // by node
  std::vector<std::int32_t> below_;     // by call
};

/// The module calls that a pattern's call_module may stand for.
class ModuleFacts {
 public:
  explicit ModuleFacts(GraphFacts& facts)
      : facts_(facts), index_(facts.graph), faults_(facts.graph.calls().size()) {
    for (const ModuleCall& call : facts.graph.calls()) {
      if (nodes(call.id).empty() || !facts.is_seen(call.id)) continue;
      if (!facts.path.empty() && call.path == facts.path) continue;
      for (ValueId output : call.outputs) by_output_[output].push_back(call.id);
      for (ValueId input : call.inputs) {
        std::vector<CallId>& calls = by_input_[input];
        if (calls.empty() || calls.back() != call.id) calls.push_back(call.id);
      }
    }
  }

  std::span<const NodeId> nodes(CallId id) const { return index_.nodes(id); }
  const std::vector<CallId>& that_return(ValueId value) const { return look_up(by_output_, value); }
  const std::vector<CallId>& that_take(ValueId value) const { return look_up(by_input_, value); }

  /// Why the module cannot be taken out as one, whatever surrounds it; "" if it can.
  const std::string& fault(CallId id) {
    auto& known = faults_[static_cast<std::size_t>(id)];
    if (!known) {
      Subgraph whole;
      const auto inside = nodes(id);
      whole.nodes.assign(inside.begin(), inside.end());
      whole.outputs = facts_.graph.call(id).outputs;
      known = match_fault(facts_.graph, whole);
    }
    return *known;
  }

 private:
  using Table = std::unordered_map<ValueId, std::vector<CallId>>;
  static const std::vector<CallId>& look_up(const Table& table, ValueId value) {
    static const std::vector<CallId> none;
    const auto found = table.find(value);
    return found == table.end() ? none : found->second;
  }

  GraphFacts& facts_;
  CallIndex index_;
  Table by_output_;
  Table by_input_;
  std::vector<std::optional<std::string>> faults_;
};

}  // namespace tenon::detail
