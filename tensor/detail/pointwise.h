// What the pointwise ops of tensor/ops share: their shape rules and the shape of their definitions.
#pragma once

#include <string>
#include <vector>

#include "tensor/op.h"
#include "tensor/ops/infer_rules.h"

namespace tenon::ops {

/// ValueError unless the number is a value of `dtype`: integer dtypes take integers in their range.
void require_representable(const InferContext& context, DType dtype, double value);

/// Broadcast shape of two operands of one dtype; without operand 1, the spec of operand 0, whose
/// dtype must hold the number `other`.
std::vector<TensorSpec> infer_binary(const InferContext& context);
/// infer_binary, floating operands only.
std::vector<TensorSpec> infer_float_binary(const InferContext& context);
/// infer_binary, DTypeError for bool.
std::vector<TensorSpec> infer_numeric_binary(const InferContext& context);
/// infer_like_input, DTypeError for bool.
std::vector<TensorSpec> infer_numeric_like_input(const InferContext& context);

/// An op of one operand `input`.
inline OpBuilder unary_op(std::string name, std::string doc, Op::Infer infer, Kernel cpu) {
  OpBuilder builder(std::move(name));
  builder.doc(std::move(doc)).operand("input").trait(Trait::elementwise).infer(infer).cpu(cpu);
  return builder;
}

/// The gradient of a unary op from the cotangent `grad` and `saved`, its input or its output. The
/// decomposition is what it is differentiated through.
inline OpBuilder unary_gradient_op(std::string name, std::string doc, std::string saved, Kernel cpu,
                                   Op::Decompose decompose) {
  OpBuilder builder(std::move(name));
  builder.doc(std::move(doc)).operand("grad").operand(std::move(saved)).trait(Trait::elementwise);
  builder.infer(infer_float_binary).cpu(cpu).decompose(decompose);
  return builder;
}

/// An op of `input` and `other`, which is a tensor or, where absent, the number in BinaryAttrs.
inline OpBuilder binary_op(std::string name, std::string doc, Op::Infer infer, Kernel cpu) {
  OpBuilder builder(std::move(name));
  builder.doc(std::move(doc)).operand("input").optional("other").trait(Trait::elementwise);
  builder.infer(infer).cpu(cpu);
  return builder;
}

}  // namespace tenon::ops
