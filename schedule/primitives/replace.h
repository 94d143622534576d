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
// A whole module, at every place where it is called:
//
//     x ─▶ ffn: [linear ─▶ gelu ─▶ linear] ─▶ y    =>    x ─▶ ffn: (replacement) ─▶ y
//
// Tensors are bound by pattern parameter. Parameters of a replacing module come from the replaced
// ones (schedule/weight_map.h; by default those of the same names, or concatenated along axis 0 in
// match order), so the model's names and values stay. Dropout sites are carried over. Calls that
// follow a mode follow that of the call that the replacement stands in, or for; a submodule of a
// replacing module whose mode is not that module's keeps its own.
#pragma once

#include "graph/graph.h"
#include "schedule/matcher.h"
#include "schedule/replacement.h"

namespace tenon {

/// Rewrites `graph`; ScheduleError with the reason where the result could differ.
void replace_matches(Graph& graph, const Replacement& replacement, const Matches& matches,
                     const ReplaceOptions& options);

/// The same for every call of the module at `path`, which is `old`; its hooks stay around the new one.
/// ScheduleError when the module takes or returns other tensors, or one inside of it has a hook.
void replace_module(Graph& graph, nn::Module& old, const std::string& path,
                    const Replacement& replacement, const ReplaceOptions& options);

}  // namespace tenon
