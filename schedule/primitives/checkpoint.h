// checkpoint: nodes that are run again in backward instead of being kept for it (Chen et al., 2016).
//
//   forward    x ─▶ [a ─▶ b ─▶ c] ─▶ y          x ─▶ [a ─▶ b ─▶ c] ─▶ y
//                    │    │    │          =>
//   backward   dx ◀─ a' ◀ b' ◀ c' ◀─ dy         x ─▶ [a ─▶ b ─▶ c]
//                                                     │    │    │
//                                               dx ◀─ a' ◀ b' ◀ c' ◀─ dy
//
// The second run has the same operands, kernels and dropout sites, so gradients keep their bits. What
// leaves a region is kept, or, without keep_results, computed again as well. The forward Graph is only marked; graph/passes/recompute.h writes the
// second run into the joint Graph.
#pragma once

#include <string>

#include "graph/graph.h"
#include "schedule/matcher.h"

namespace tenon {

/// Each call of the module at `path` is one region. ScheduleError when it is never called, or part of
/// it is in a region already.
void checkpoint_module(Graph& graph, const std::string& path, bool keep_results);
/// Each match is one region.
void checkpoint_matches(Graph& graph, const Matches& matches, bool keep_results);

}  // namespace tenon
