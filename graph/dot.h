// A Graph as Graphviz DOT: modules as nested clusters, parameters left out, what a rewrite did marked.
//
//   const GraphDiff changes = diff(before, after);
//   write_svg("before.svg", to_dot(before, changes));   // graph/svg.h; removed nodes are red
//   write_svg("after.svg", to_dot(after, changes));     // new nodes are orange, changed ones yellow
#pragma once

#include <string>

#include "graph/diff.h"
#include "graph/graph.h"

namespace tenon {

/// Nodes of this Graph that `changes` lists are marked; a legend tells the marks that occur.
std::string to_dot(const Graph& graph, const GraphDiff& changes = {});

}  // namespace tenon
