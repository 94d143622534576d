// Shape and dtype rules of the optimizer updates.
#pragma once

#include "tensor/op.h"

namespace tenon::ops {

/// ShapeError, DTypeError unless operand `grad` has the shape of the floating operand `param`, and its
/// dtype or a 16-bit one where `param` is float32.
void require_gradient_of(const InferContext& context, int grad, int param);
/// ShapeError, DTypeError unless operand `state` has the shape and dtype of `param`.
void require_state_of(const InferContext& context, int state, int param);
/// ShapeError, DTypeError unless operand i, where present, is floating with one element.
void require_one_element(const InferContext& context, int i);

}  // namespace tenon::ops
