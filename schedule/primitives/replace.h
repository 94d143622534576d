// replace: a module or a function in place of matched nodes.
//
// Vertical, for a replacement that returns one tensor; every match is replaced on its own:
//
//     a ─▶ [op1 ─▶ op2 ─▶ op3] ─▶ y        =>      a ─▶ (replacement) ─▶ y
//
// Horizontal, for one that returns n tensors: n matches with the same inputs become one call, the
// i-th tensor standing for the i-th match:
//
//       ┌▶ [q ops] ─▶ q                                 ┌▶ q
//     x ┼▶ [k ops] ─▶ k                    =>   x ─▶ (replacement) ─▶ k
//       └▶ [v ops] ─▶ v                                 └▶ v
//
// Tensors are bound by pattern parameter. Parameters of a replacing module come from the matched
// ones (concatenated along axis 0 in match order), so the model's names and values stay. Dropout
// sites are carried over.
#pragma once

#include "graph/graph.h"
#include "schedule/matcher.h"
#include "schedule/replacement.h"

namespace tenon {

/// Rewrites `graph`; ScheduleError with the reason where the result could differ.
void replace_matches(Graph& graph, const Replacement& replacement, const Matches& matches,
                     const ReplaceOptions& options);

}  // namespace tenon
