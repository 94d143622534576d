// What the ops that look up by index share.
#pragma once

#include "tensor/op.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// DTypeError unless operand i is int64 or int32.
void require_index(const InferContext& context, int i);
/// For IndexOperand::axis: the axis of AxisAttrs.
std::int64_t axis_attribute(const Attrs& attrs);

/// Indices as the ops take them: int16 and int8 are cast to int32, others are as they were.
Tensor wide_index(const Tensor& index);

}  // namespace tenon::ops
