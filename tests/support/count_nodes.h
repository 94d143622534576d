// How often an op occurs in a Graph: what tests of graph passes ask first.
#pragma once

#include <algorithm>
#include <string_view>

#include "graph/graph.h"

namespace tenon::test {

inline int count_nodes(const Graph& graph, std::string_view op) {
  return static_cast<int>(std::count_if(graph.order().begin(), graph.order().end(),
                                        [&](NodeId id) { return graph.node(id).op->name == op; }));
}

}  // namespace tenon::test
