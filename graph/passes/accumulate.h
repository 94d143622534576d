// Lets the op that computes a gradient add it to what is there already.
//
//   a, b ─▶ matmul ─┐                         a, b, c ─▶ matmul_add ─▶ d
//                   ├─ add ─▶ d       =>
//             c ────┘
//
// An op says in Op::accumulates_as which op does both. Only backward's own sums are taken: what the
// model wrote as a sum stays one unless its schedule says otherwise.
#pragma once

#include "graph/graph.h"

namespace tenon {

/// Returns how many sums were taken in. A sum stays where the term has another use, another shape or
/// dtype than the sum, or where the other term is not there yet when the op must run.
int accumulate_gradients(Graph& graph);

}  // namespace tenon
