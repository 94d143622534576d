// bind: which implementation of its op a node runs, in place of the heuristic's choice.
//
//     q, k, v ─▶ attention (heuristic) ─▶ y    =>    q, k, v ─▶ attention (cuda.flash_mma) ─▶ y
//
// It holds on the device whose implementation it is; elsewhere the heuristic chooses.
#pragma once

#include <string>

#include "graph/graph.h"
#include "schedule/matcher.h"

namespace tenon {

/// Binds every node of the matches whose op has an implementation of that name. ScheduleError that
/// lists what there is when none has.
void bind_matches(Graph& graph, const Matches& matches, const std::string& kernel);

}  // namespace tenon
