// Writes one call of a replacement into a Graph, in place of matched nodes: the mechanism under
// replace, replace_all and whole-module replacement.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "graph/graph.h"
#include "graph/tracer.h"
#include "schedule/matcher.h"
#include "schedule/replacement.h"
#include "schedule/rewriting/mapped_weights.h"

namespace tenon::detail {

/// Matches with the same inputs that become one call.
using Branches = std::vector<const Subgraph*>;

struct Rewrite {
  Graph& graph;
  const Replacement& replacement;
  const ModuleTree& tree;  // of the replacing module, by tree_like
  const WeightMap& weights;
  Branches branches;
  /// A whole module, whose place in the tree the replacement takes: the call that is replaced.
  CallId replaced_call = kNone;

  /// Returns what stands for the branches' results now, branch by branch. ScheduleError where the
  /// number or specs of the results, the masks or the weights do not fit.
  std::vector<ValueId> run();
};

/// The replacing module's tree, its floating state at the dtype and device of what it is given, so
/// that a replacement is written without regard to where the model is; empty for a function. Calls of
/// one replacement share it: what they bring as fresh is one parameter.
ModuleTree tree_like(const Replacement& replacement, const Graph& graph, const Subgraph& match);

}  // namespace tenon::detail
