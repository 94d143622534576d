// What a rewrite must keep of a Graph, so that it means the same: the invariants between two Graphs,
// in the numbers of graph/verify.h. Values are not compared; schedule/verification.h does that.
#pragma once

#include <span>
#include <string>

#include "graph/graph.h"

namespace tenon {

/// Throws GraphError naming the first broken invariant by its number (listed in verify_rewrite.cpp).
/// Both Graphs verify by themselves, and `rewritten` was made from a copy of `original`.
/// `fresh` are the parameters that were asked for instead of the original's, which may then go.
void verify_rewrite(const Graph& original, const Graph& rewritten,
                    std::span<const std::string> fresh = {});

}  // namespace tenon
