// fold: batch norm in evaluation, done by the convolution or Linear in front of it.
//
//     x, weight, bias ─▶ conv2d ─▶ batch_norm ─▶ y
//  =>
//     x, weight·scale, (bias - running_mean)·scale + norm.bias ─▶ conv2d ─▶ y
//
// scale is norm.weight / √(running_var + eps), a number for each channel of the result. Both products are
// computed from the model's parameters and buffers, which stay what they are: once, and again when
// they change. From then on the Graph holds for eval mode.
#pragma once

#include <string>

#include "graph/graph.h"
#include "schedule/matcher.h"

namespace tenon {

/// Folds every batch norm of the matches. ScheduleError naming the node where that would change the
/// result, or is no gain: in training, where something else reads what is normalized, or along
/// another axis; `training` is the model's mode now.
void fold_matches(Graph& graph, const Matches& matches, const std::string& name, bool training);

}  // namespace tenon
