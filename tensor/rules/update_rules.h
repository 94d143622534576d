// What adam_step and sgd_step share: shape and dtype rules, and the way to operands and back.
#pragma once

#include "tensor/calls/optimizer_operands.h"
#include "tensor/op.h"
#include "tensor/ops/optimizer_steps.h"

namespace tenon::ops {

/// The results' specs. ShapeError, DTypeError unless every gradient has the shape of its floating
/// parameter, and its dtype or a 16-bit one where that is float32, the state has both, and lr,
/// grad_scale and steps have one element; ValueError for operands that do not add up.
std::vector<TensorSpec> infer_updates(const InferContext& context, const UpdateLayout& layout);

/// Calls `op` with the operands that `layout` says; ValueError without parameters.
std::vector<UpdatedParameter> apply_updates(const Op& op, const UpdateLayout& layout,
                                            const std::vector<ParameterUpdate>& updates,
                                            const Tensor& lr, const Tensor& grad_scale,
                                            const Attrs& attrs);

}  // namespace tenon::ops
