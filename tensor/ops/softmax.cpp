// softmax along one axis, and its gradient.
#include "tensor/cpu/softmax.h"

#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor softmax(const Tensor& input, std::int64_t dim) {
  static const Op& op = get_op("softmax");
  return apply1(op, {input}, AxisAttrs{ops::axis_of("softmax", input, dim)});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_softmax(const InferContext& context) {
  require_floating(context, 0);
  normalize_axis("softmax", context.attributes<AxisAttrs>().dim, context[0].shape.rank());
  return {context[0]};
}

std::vector<Tensor> vjp_softmax(const VjpContext& call) {
  if (!call.needs(0)) return {Tensor()};
  return {softmax_backward(call.cotangent(0), call.output(0), call.attributes<AxisAttrs>().dim)};
}

std::vector<TensorSpec> infer_softmax_backward(const InferContext& context) {
  require_same_dtype(context);
  require_same_shape(context, 0, 1);
  return infer_softmax(context);
}

std::vector<Tensor> decompose_softmax_backward(std::span<const Tensor> inputs, const Attrs& attrs) {
  const Tensor weighted = inputs[0] * inputs[1];
  const Tensor total = sum(weighted, {attrs.as<AxisAttrs>().dim}, /*keepdim=*/true);
  return {weighted - inputs[1] * total};
}

}  // namespace

Tensor softmax_backward(const Tensor& grad, const Tensor& output, std::int64_t dim) {
  static const Op& op = get_op("softmax_backward");
  return apply1(op, {grad, output}, AxisAttrs{dim});
}

Op define_softmax() {
  return OpBuilder("softmax")
      .doc(
          "exp(x - max)/Σ exp(x - max) along dim, in float32 (float64 for float64). Terms below "
          "the smallest normal number count as 0; a row of -inf, or with NaN or +inf, gives NaN.")
      .operand("input")
      .infer(infer_softmax)
      .vjp(vjp_softmax)
      .saves_outputs({0})
      .cpu({.name = "cpu.softmax",
            .run = cpu::softmax,
            .accepts = any_layout,
            .strided_output = true})
      .range(ranges::softmax)
      .done();
}

Op define_softmax_backward() {
  return OpBuilder("softmax_backward")
      .doc("The gradient of softmax's input: (grad - Σ grad·output)·output, the sum along dim.")
      .operand("grad")
      .operand("output")
      .infer(infer_softmax_backward)
      .decompose(decompose_softmax_backward)
      .cpu({.name = "cpu.softmax_backward",
            .run = cpu::softmax_backward,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
