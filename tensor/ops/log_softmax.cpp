// log_softmax along one axis, and its gradient.
#include "tensor/cpu/softmax.h"

#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"

namespace tenon {

Tensor log_softmax(const Tensor& input, std::int64_t dim) {
  static const Op& op = get_op("log_softmax");
  return apply1(op, {input}, AxisAttrs{ops::axis_of("log_softmax", input, dim)});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_log_softmax(const InferContext& context) {
  require_floating(context, 0);
  normalize_axis(context.op().name, context.attributes<AxisAttrs>().dim, context[0].shape.rank());
  return {context[0]};
}

std::vector<Tensor> vjp_log_softmax(const VjpContext& call) {
  if (!call.needs(0)) return {Tensor()};
  return {
      log_softmax_backward(call.cotangent(0), call.output(0), call.attributes<AxisAttrs>().dim)};
}

std::vector<TensorSpec> infer_log_softmax_backward(const InferContext& context) {
  require_same_dtype(context);
  require_same_shape(context, 0, 1);
  return infer_log_softmax(context);
}

std::vector<Tensor> decompose_log_softmax_backward(std::span<const Tensor> inputs,
                                                   const Attrs& attrs) {
  const Tensor total = sum(inputs[0], {attrs.as<AxisAttrs>().dim}, /*keepdim=*/true);
  return {inputs[0] - exp(inputs[1]) * total};
}

}  // namespace

Tensor log_softmax_backward(const Tensor& grad, const Tensor& output, std::int64_t dim) {
  static const Op& op = get_op("log_softmax_backward");
  return apply1(op, {grad, output}, AxisAttrs{dim});
}

Op define_log_softmax() {
  return OpBuilder("log_softmax")
      .doc(
          "x - max - log Σ exp(x - max) along dim, in float32 (float64 for float64); a row of "
          "-inf, "
          "or with NaN or +inf, gives NaN.")
      .operand("input")
      .infer(infer_log_softmax)
      .vjp(vjp_log_softmax)
      .saves_outputs({0})
      .cpu({.name = "cpu.log_softmax",
            .run = cpu::log_softmax,
            .accepts = any_layout,
            .strided_output = true})
      .range(ranges::nonpositive)
      .done();
}

Op define_log_softmax_backward() {
  return OpBuilder("log_softmax_backward")
      .doc("The gradient of log_softmax's input: grad - exp(output)·Σ grad, the sum along dim.")
      .operand("grad")
      .operand("output")
      .infer(infer_log_softmax_backward)
      .decompose(decompose_log_softmax_backward)
      .cpu({.name = "cpu.log_softmax_backward",
            .run = cpu::log_softmax_backward,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
