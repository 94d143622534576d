// What a search asks of a Graph over and over, each found once.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "schedule/facts/run_results.h"
#include "schedule/matcher.h"

namespace tenon::detail {

class GraphFacts {
 public:
  GraphFacts(const Graph& g, std::string base)
      : graph(g), run_results(g), path(std::move(base)), seen_(g.calls().size()) {}

  /// The call that a module's call is seen in; kNone for the root's.
  CallId home_of_call(CallId id) const {
    CallId home = graph.call(id).parent;
    for (CallId c = home; c != kNone && !graph.call(c).closed; c = graph.call(c).parent) {
      if (graph.call(c).flattened) home = c;
    }
    return home;
  }

  /// The call is the searched module or below it.
  bool is_seen(CallId id) {
    std::optional<bool>& known = seen_[static_cast<std::size_t>(id)];
    if (!known) known = is_below(graph.call(id).path, path);
    return *known;
  }

  const Graph& graph;
  const RunResults run_results;
  const std::string path;

 private:
  std::vector<std::optional<bool>> seen_;  // by call
};

/// The module calls that a pattern's call_module may stand for.
class ModuleFacts {
 public:
  explicit ModuleFacts(GraphFacts& facts) : facts_(facts), faults_(facts.graph.calls().size()) {
    for (const ModuleCall& call : facts.graph.calls()) {
      if (!facts.is_seen(call.id) || facts.graph.nodes_within(call.id).empty()) continue;
      if (!facts.path.empty() && call.path == facts.path) continue;
      for (ValueId output : call.outputs) by_output_[output].push_back(call.id);
      for (ValueId input : call.inputs) {
        std::vector<CallId>& calls = by_input_[input];
        if (calls.empty() || calls.back() != call.id) calls.push_back(call.id);
      }
    }
  }

  const std::vector<CallId>& that_return(ValueId value) const { return look_up(by_output_, value); }
  const std::vector<CallId>& that_take(ValueId value) const { return look_up(by_input_, value); }

  /// Why the module cannot be taken out as one, whatever surrounds it; "" if it can.
  const std::string& fault(CallId id) {
    auto& known = faults_[static_cast<std::size_t>(id)];
    if (!known) {
      Subgraph whole;
      whole.nodes = facts_.graph.nodes_within(id);
      whole.outputs = facts_.graph.call(id).outputs;
      known = match_fault(facts_.graph, whole);
    }
    return *known;
  }

 private:
  using Table = std::unordered_map<ValueId, std::vector<CallId>>;
  static const std::vector<CallId>& look_up(const Table& table, ValueId value) {
    static const auto& none = *new std::vector<CallId>;  // never destroyed
    const auto found = table.find(value);
    return found == table.end() ? none : found->second;
  }

  GraphFacts& facts_;
  Table by_output_;
  Table by_input_;
  std::vector<std::optional<std::string>> faults_;
};

}  // namespace tenon::detail
