// What the ops that look up by index share.
#pragma once

#include "tensor/op.h"

namespace tenon::ops {

/// DTypeError unless operand i is int64 or int32.
void require_index(const InferContext& context, int i);

}  // namespace tenon::ops
