// What max_pool2d and avg_pool2d share: their attributes and shape rules.
#pragma once

#include "tensor/functional.h"
#include "tensor/op.h"
#include "tensor/ops/vision_attributes.h"

namespace tenon::ops {

Pool2dAttrs pool_attrs(const Size2& kernel_size, const Size2& stride, const Size2& padding);
/// The attributes of the gradient of an input of shape `shape`.
Pool2dBackwardAttrs pool_backward_attrs(const Pool2dAttrs& attrs, const Shape& shape);
Pool2dAttrs pool_forward_attrs(const Pool2dBackwardAttrs& attrs);

/// (N, C, H', W') of operand 0, (N, C, H, W).
TensorSpec infer_pool(const InferContext& context);
/// The spec of the input's gradient; ShapeError unless operand 0 has the shape of the output.
TensorSpec infer_pool_backward(const InferContext& context);

}  // namespace tenon::ops
