// trace({.flatten = true}): modules below one are seen as nodes of it, so that a pattern can cross
// their borders. Only how nodes are seen and named changes; the computation does not.
//
//     proj ┬ dense: [linear, add]                proj: [linear, add, dropout, add_1, layer_norm]
//          ├ dropout: [dropout]           =>
//          └ layer_norm, [add]
#pragma once

#include <string>

#include "graph/graph.h"
#include "schedule/schedule.h"

namespace tenon {

/// Opens or closes the calls of the module at `path`; ScheduleError when it was never called.
void retrace_module(Graph& graph, const std::string& path, const TraceOptions& options);

}  // namespace tenon
