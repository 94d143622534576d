// Shape and dtype rules of pointwise ops.
#include "tensor/rules/pointwise.h"

#include "tensor/ops/attributes.h"
#include "tensor/support/check.h"

namespace tenon::ops {
namespace {

void require_numeric(const InferContext& context) {
  TENON_CHECK(context[0].dtype != DType::boolean, DTypeError,
              "[{}] operand 'input' is bool; needed a float or integer dtype", context.op().name);
}

}  // namespace

void require_representable(const InferContext& context, const Scalar& value) {
  const Number number = detail::hint_of(value);
  const DType dtype = context[0].dtype;
  if (is_value_of(number, dtype)) return;
  const DType remedy = number.is_integer() ? DType::int64 : DType::float32;
  detail::fail<ValueError>(
      "[{}] the number {} does not fit the dtype {} of operand 'input', of shape {}; convert the "
      "operand first, with .to(DType::{})",
      context.op().name, number.to_string(), name(dtype), context[0].shape.to_string(),
      name(remedy));
}

std::vector<TensorSpec> infer_binary(const InferContext& context) {
  const TensorSpec& input = context[0];
  if (!context.has(1)) {
    require_representable(context, context.attributes<BinaryAttrs>().other);
    return {input};
  }
  require_same_dtype(context);
  Shape shape = broadcast_shapes(context.op().name, input.shape, context[1].shape);
  return {{input.dtype, std::move(shape), input.device}};
}

std::vector<TensorSpec> infer_float_binary(const InferContext& context) {
  require_floating(context, 0);
  return infer_binary(context);
}

std::vector<TensorSpec> infer_numeric_binary(const InferContext& context) {
  require_numeric(context);
  return infer_binary(context);
}

std::vector<TensorSpec> infer_numeric_like_input(const InferContext& context) {
  require_numeric(context);
  return {context[0]};
}

void load_number(const Number& value, DType dtype, void* target) {
  dispatch_all(dtype, [&]<class T>() {
    using C = compute_type<T>;
    *static_cast<C*>(target) = static_cast<C>(value.to<T>());
  });
}

std::vector<TensorSpec> infer_comparison(const InferContext& context) {
  TensorSpec output = context.has(1) ? infer_binary(context)[0] : context[0];
  output.dtype = DType::boolean;
  return {output};
}

OpBuilder unary_op(std::string_view name, std::string_view doc, Op::Infer infer,
                   const Kernel& cpu) {
  OpBuilder builder(name);
  builder.doc(doc).operand("input").trait(Trait::elementwise).infer(infer).cpu(cpu);
  return builder;
}

OpBuilder unary_gradient_op(std::string_view name, std::string_view doc, std::string_view saved,
                            const Kernel& cpu, Op::Decompose decompose) {
  OpBuilder builder(name);
  builder.doc(doc).operand("grad").operand(saved).trait(Trait::elementwise);
  builder.infer(infer_float_binary).cpu(cpu).decompose(decompose);
  return builder;
}

OpBuilder binary_op(std::string_view name, std::string_view doc, Op::Infer infer,
                    const Kernel& cpu) {
  OpBuilder builder(name);
  builder.doc(doc).operand("input").optional("other").trait(Trait::elementwise);
  builder.infer(infer).cpu(cpu);
  return builder;
}

}  // namespace tenon::ops
