// Connects the parameters that a replacement brought with those of the model.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "graph/graph.h"
#include "schedule/matcher.h"
#include "schedule/replacement.h"

namespace tenon::detail {

/// One call of a replacing module that was just written into a Graph.
struct ReplacingCall {
  const Replacement& replacement;
  const WeightMap& weights;
  const std::vector<const Subgraph*>& branches;  // what it replaces
  const std::unordered_set<ValueId>& known;      // the values that were there before
  std::string state_prefix;                      // its states are called this and their own name
  bool whole_module = false;  // branches[0] is a whole module: its states of the same names
  std::string replaced_path;  // are meant, where nothing else is said
  CallId call = kNone;
  std::size_t position = 0;  // where nodes that make its parameters can stand
};

/// Every parameter that the call brought becomes an expression of the model's, unless it is asked to
/// be fresh; a buffer becomes the replaced module's of the same name, if there is one. ScheduleError
/// when a source is missing, unknown or ambiguous, or does not fit.
void map_weights(Graph& graph, const ReplacingCall& call);

/// ScheduleError unless these parameters can become one: none twice, all or none frozen, all or none
/// used by nodes that made a value of `known` and are not among `nodes`. `joined` names the result.
void check_joinable(const Graph& graph, const std::vector<ValueId>& sources,
                    const std::unordered_set<NodeId>& nodes,
                    const std::unordered_set<ValueId>& known, const std::string& joined);

std::unordered_set<ValueId> value_set(const Graph& graph);

/// The last component of a dotted name.
std::string last_component(const std::string& name);

}  // namespace tenon::detail
