// What layer_norm and rms_norm share: shape rules, and the composition their gradients are made of.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/op.h"
#include "tensor/rules/gradients.h"

namespace tenon::ops {

/// ShapeError unless the last sizes of `input` are `normalized_shape`; nothing in a pattern.
void require_normalized_shape(std::string_view op, const Tensor& input,
                              const std::vector<std::int64_t>& normalized_shape);

/// The spec of operand 0, a floating tensor whose last `axes` sizes the operands after it have.
std::vector<TensorSpec> infer_norm(const InferContext& context, std::int64_t axes);
/// Operands grad, input, weight (optional) and, for the ops that accumulate, an addend of the first
/// gradient's shape; NormBackwardAttrs: the specs of the gradients asked for.
std::vector<TensorSpec> infer_norm_backward(const InferContext& context);

/// A call of a gradient op; nothing runs when nothing is asked for.
NormGradients call_norm_backward(const Op& op, const Tensor& grad, const Tensor& input,
                                 const Tensor& weight, const NormBackwardAttrs& attrs);
/// The outputs of a gradient op by name, where the flags say which there are.
NormGradients named_gradients(const std::vector<Tensor>& outputs, bool input, bool weight,
                              bool bias);
/// The same gradients in plain ops, plus the addend where there is one. Without `centers` the mean is not
/// subtracted (rms_norm).
std::vector<Tensor> decompose_norm_backward(std::span<const Tensor> inputs,
                                            const NormBackwardAttrs& attrs, bool centers);

}  // namespace tenon::ops
