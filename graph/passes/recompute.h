// Writes the second run of checkpointed regions into a joint Graph (Chen et al., 2016, "Training deep
// nets with sublinear memory cost").
//
//   x ─▶ [a ─▶ b] ─▶ y ─▶ loss              x ─▶ [a ─▶ b] ─▶ y ─▶ loss
//         ▼    ▼          ▼         =>                          ▼
//   dx ◀─ a' ◀ b' ◀─────── 1          x ─▶ [a ─▶ b]   ┌──────── 1
//                                          ▼    ▼     │
//                                    dx ◀─ a' ◀ b' ◀──┘
//
// Values of a region that backward reads come from the second run, which stands right before the first
// gradient that needs it; so the first run's die early. What nodes outside of the region read in the
// forward pass is kept and not run again, unless the region discards its results (cheap ones, say those
// of a norm or an activation). An op with Op::rederived_by does not run again. Random nodes keep their sites: the masks are the same.
#pragma once

#include "graph/graph.h"

namespace tenon {

/// Returns how many nodes were written.
int recompute_regions(Graph& graph);

}  // namespace tenon
