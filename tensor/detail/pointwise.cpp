// Shape and dtype rules of pointwise ops.
#include "tensor/detail/pointwise.h"

#include "tensor/cpu/convert.h"
#include "tensor/detail/check.h"
#include "tensor/detail/comparison.h"
#include "tensor/ops/attributes.h"

namespace tenon::ops {
namespace {

void require_numeric(const InferContext& context) {
  TENON_CHECK(context[0].dtype != DType::boolean, DTypeError,
              "[{}] operand 'input' is bool; needed a float or integer dtype", context.op().name);
}

}  // namespace

void require_representable(const InferContext& context, DType dtype, double value) {
  const bool fits = dispatch_all(dtype, [&]<class T>() { return cpu::is_representable<T>(value); });
  TENON_CHECK(fits, ValueError,
              "[{}] the number {} does not fit the dtype {} of operand 'input'; convert with cast",
              context.op().name, value, name(dtype));
}

std::vector<TensorSpec> infer_binary(const InferContext& context) {
  const TensorSpec& input = context[0];
  if (!context.has(1)) {
    const Scalar& other = context.attributes<BinaryAttrs>().other;
    if (other.is_constant()) require_representable(context, input.dtype, other.value());
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

void load_number(double value, DType dtype, void* target) {
  dispatch_all(dtype, [&]<class T>() {
    using C = compute_type<T>;
    *static_cast<C*>(target) = static_cast<C>(cpu::convert<T>(value));
  });
}

std::vector<TensorSpec> infer_comparison(const InferContext& context) {
  std::vector<TensorSpec> outputs = infer_binary(context);
  outputs[0].dtype = DType::boolean;
  return outputs;
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
