// What the ops that look up by index share.
#pragma once

#include "tensor/op.h"

namespace tenon::ops {

/// DTypeError unless operand i is int64 or int32.
void require_index(const InferContext& context, int i);
/// For IndexOperand::axis: the axis of AxisAttrs.
std::int64_t axis_attribute(const Attrs& attrs);

}  // namespace tenon::ops
