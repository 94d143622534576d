// What the pointwise ops of tensor/ops share: their shape rules and the shape of their definitions.
#pragma once

#include <string_view>
#include <vector>

#include "tensor/op.h"
#include "tensor/rules/infer_rules.h"

namespace tenon::ops {

/// ValueError unless the number is a value of operand 0's dtype: integer dtypes take integers in their
/// range. A symbolic one counts by its example sizes here, and by the real ones when it is lowered.
void require_representable(const InferContext& context, const Scalar& value);

/// Broadcast shape of two operands of one dtype; without operand 1, the spec of operand 0, whose
/// dtype must hold the number `other`.
std::vector<TensorSpec> infer_binary(const InferContext& context);
/// infer_binary, floating operands only.
std::vector<TensorSpec> infer_float_binary(const InferContext& context);
/// infer_binary, DTypeError for bool.
std::vector<TensorSpec> infer_numeric_binary(const InferContext& context);
/// infer_binary; the output is bool.
std::vector<TensorSpec> infer_comparison(const InferContext& context);
/// infer_like_input, DTypeError for bool.
std::vector<TensorSpec> infer_numeric_like_input(const InferContext& context);

/// `value` as an element of `dtype`, widened to its compute type.
void load_number(const Number& value, DType dtype, void* target);

/// An op of one operand `input`.
OpBuilder unary_op(std::string_view name, std::string_view doc, Op::Infer infer, const Kernel& cpu);

/// The gradient of a unary op from the cotangent `grad` and `saved`, its input or its output. The
/// decomposition is what it is differentiated through.
OpBuilder unary_gradient_op(std::string_view name, std::string_view doc, std::string_view saved,
                            const Kernel& cpu, Op::Decompose decompose);

/// An op of `input` and `other`, which is a tensor or, where absent, the number in BinaryAttrs.
OpBuilder binary_op(std::string_view name, std::string_view doc, Op::Infer infer,
                    const Kernel& cpu);

}  // namespace tenon::ops
