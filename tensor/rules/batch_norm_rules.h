// What batch_norm and the ops that it is fused into share: how the running statistics move, shapes, and
// gradients through the statistics.
#pragma once

#include <span>
#include <vector>

#include "tensor/op.h"
#include "tensor/ops/norm_attributes.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// The first result; new running statistics are copied into place. ValueError where running statistics
/// that the mode needs are missing.
Tensor call_batch_norm(const Op& op, std::span<const Tensor> operands, BatchNormAttrs attrs);

/// (N, C, …) first, then up to four vectors (C), or absent ones.
std::vector<TensorSpec> infer_batch_norm(const InferContext& context);

/// In evaluation the new running statistics are the old ones.
int repeated_statistics(const Attrs& attrs, bool training, int output);

/// `gradient` of the input, plus how the input enters the mean and the factor that a second derivative
/// asks about: (grad_mean - grad_factor·factor²·x̂)/n.
Tensor add_statistics_gradient(const VjpContext& call, const Tensor& gradient, DropoutMode mode);

}  // namespace tenon::ops
