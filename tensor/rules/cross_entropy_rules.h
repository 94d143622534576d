// What cross_entropy and linear_cross_entropy share: rules for their operands, and second derivatives.
#pragma once

#include "tensor/op.h"
#include "tensor/ops/norm_attributes.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// ValueError unless the options' label smoothing is from 0 to 1; `op` names the op.
CrossEntropyAttrs cross_entropy_attrs(const char* op, const CrossEntropyOptions& options);

/// For IndexOperand::ignored: the ignore_index of CrossEntropyAttrs.
std::int64_t ignored_target(const Attrs& attrs);

/// With G the gradient of cross_entropy's rows of logits for a loss gradient `grad`: the gradient of
/// Σ G·cotangent by the logits, (N, C).
Tensor cross_entropy_second_derivative(const Tensor& grad, const Tensor& logits,
                                       const Tensor& target, const Tensor& cotangent,
                                       const CrossEntropyAttrs& attrs);

}  // namespace tenon::ops
