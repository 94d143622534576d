// decompose: the ops of one module, or of matches, as the plainer ops they consist of.
//
//     x, weight, bias ─▶ linear ─▶ y    =>    x, weight ─▶ linear ─▶ add ─▶ y
//                                                            bias ───┘
#pragma once

#include <string>

#include "graph/graph.h"
#include "schedule/matcher.h"

namespace tenon {

/// Rewrites the nodes that the module at `path` made itself; ScheduleError when none of them can be
/// split (a Linear without bias, an op that is elementary).
void decompose_module(Graph& graph, const std::string& path);
/// The same for the nodes of the matches; ScheduleError when one of them cannot be split.
void decompose_matches(Graph& graph, const Matches& matches);

}  // namespace tenon
