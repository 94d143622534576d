// fuse: one fused op in place of a matched composition.
//
//     x ─▶ add ─▶ dropout ─▶ add ─▶ layer_norm ─▶ y
//     bias ┘   residual ─────┘      weight, bias ┘
//  =>
//     x, bias, residual, weight, norm_bias ─▶ bias_dropout_residual_layer_norm ─▶ y
//
// A fused op's decomposition is its pattern: whichever registered op decomposes into exactly the
// matched nodes is used, its attributes read off them.
#pragma once

#include <string>

#include "graph/graph.h"
#include "schedule/matcher.h"

namespace tenon {

/// Rewrites every match; ScheduleError naming the nodes when no fused op is their composition.
void fuse_matches(Graph& graph, const Matches& matches, const std::string& name);

}  // namespace tenon
