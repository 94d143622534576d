// Lets the product that reaches an activation's output go through its slope.
//
//   g, w ─▶ matmul ─▶ gelu_backward ─▶ dp      =>     g, w, p ─▶ matmul_gelu_backward ─▶ dp
//                      ▲
//   linear_gelu_aux ─▶ p
//
// Only where the forward Graph has the product and its GELU as one op: then the schedule asked for it. The
// same of linear_silu_aux, and of linear_relu, whose slope is read off its result.
//
// Where GELU is computed again from p (graph/passes/recompute.h), that reads p anyway:
//
//   g, w, p ─▶ matmul_gelu_backward ─▶ dp      =>     g, w, p ─▶ matmul_gelu_backward_again ─▶ dp
//         p ─▶ gelu ─▶ y                                                                    └▶ y
#pragma once

#include "graph/graph.h"

namespace tenon {

/// Returns how many pairs were fused. A product that has another use, is returned, or is bound to a
/// kernel stays as it is.
int fuse_gelu_gradients(Graph& graph);

/// For after recomputation. Returns how many activations come from a gradient's product now: those whose
/// first reader does not run before what the product needs.
int fuse_gelus_again(Graph& graph);

}  // namespace tenon
