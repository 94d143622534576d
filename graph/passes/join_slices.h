// Joins the gradients of pieces that tile a tensor.
//
//   dq ─▶ [dq 0 0] ─┐
//   dk ─▶ [0 dk 0] ─┼─ add ─ add ─▶ d(qkv)    =>    dq, dk, dv ─▶ cat ─▶ d(qkv)
//   dv ─▶ [0 0 dv] ─┘
//
// Each element is then written once instead of being padded with zeros and added n - 1 times.
#pragma once

#include "graph/graph.h"

namespace tenon {

/// Returns how many sums were joined. Sums that have other terms, or whose pieces leave gaps or
/// overlap, stay as they are, and so does what else uses a padded piece.
int join_slices(Graph& graph);

}  // namespace tenon
