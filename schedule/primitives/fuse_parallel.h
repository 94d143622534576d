// fuse_parallel: several Linears of one input as one product, without a module being written for it.
//
//       ┌▶ linear(wq, bq) ─▶ q                              ┌▶ narrow ─▶ q
//     x ┼▶ linear(wk, bk) ─▶ k    =>    x ─▶ linear(cat, cat) ┼▶ narrow ─▶ k
//       └▶ linear(wv, bv) ─▶ v                              └▶ narrow ─▶ v
//
// Widths may differ. `build` packs the weights, so neither the concatenations nor the slices copy.
#pragma once

#include <string>

#include "graph/graph.h"
#include "schedule/matcher.h"

namespace tenon {

/// Joins the linear nodes of the matches that read the same input. ScheduleError when one reads an
/// input alone, is another op, has no bias where others have one, or its weights cannot be joined.
void fuse_parallel_matches(Graph& graph, const Matches& matches, const std::string& name);

}  // namespace tenon
