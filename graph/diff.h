// What differs between two versions of one Graph. Ids are stable under rewrites, so nodes are compared
// by id.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace tenon {

struct GraphDiff {
  std::vector<NodeId> removed;  // only before
  std::vector<NodeId> added;    // only after
  std::vector<NodeId> changed;  // other operands, attributes, kernel or recomputation region
};

/// Each list in the program order of the Graph that has the nodes.
GraphDiff diff(const Graph& before, const Graph& after);

}  // namespace tenon
