// The verifier: structural and type invariants of a Graph, run after every rewrite.
//
// Invariants are numbered once for all their homes: verify() checks what one Graph must satisfy,
// verify_rewrite() (graph/verify_rewrite.h) what a rewrite must keep, and the matcher (check_match in
// schedule/matcher.h) what a match must satisfy.
#pragma once

#include "graph/graph.h"

namespace tenon {

/// Throws GraphError naming the first broken invariant by its number (listed in verify.cpp) and the
/// node or value that breaks it.
void verify(const Graph& graph);
/// The same, where `known` verified before: what `graph` still shares with it, its copy or origin, is
/// not inferred again.
void verify(const Graph& graph, const Graph& known);

}  // namespace tenon
