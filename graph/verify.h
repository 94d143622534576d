// The verifier: structural and type invariants of a Graph, run after every rewrite.
#pragma once

#include "graph/graph.h"

namespace tenon {

/// Throws GraphError naming the first broken invariant by its number (listed in verify.cpp) and the
/// node or value that breaks it.
void verify(const Graph& graph);

}  // namespace tenon
