// What the vjps of tensor/ops share: gradient ops that users do not call, and shape bookkeeping.
#pragma once

#include "tensor/ops/attributes.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// The gradient of a broadcast operand of shape `shape`: `gradient` summed over the axes along which
/// the operand was repeated.
Tensor sum_to(const Tensor& gradient, const Shape& shape);

/// (…, N) as a matrix (R, N), its leading axes merged into rows; without any, one row.
Tensor as_rows(const Tensor& tensor);

}  // namespace tenon::ops
