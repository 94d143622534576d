// conv2d, and its gradients, which are each other's gradients too: all three are linear in each operand.
#include "tensor/cpu/conv2d.h"

#include "tensor/calls/window.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor conv2d(const Tensor& input, const Tensor& weight, const Tensor& bias, Size2 stride,
              Size2 padding, Size2 dilation, std::int64_t groups) {
  const auto list = [](const Size2& size) { return std::vector(size.begin(), size.end()); };
  return ops::conv2d_with(input, weight, bias,
                          {list(stride), list(padding), list(dilation), groups});
}

namespace ops {
namespace {

/// (N, O, H', W') of (N, C, H, W) and (O, C/groups, KH, KW).
Shape output_shape(std::string_view op, const Shape& input, const Shape& weight,
                   const Conv2dAttrs& attrs) {
  const auto& [stride, padding, dilation, groups] = attrs;
  require_at_least(op, "stride", stride, 1);
  require_at_least(op, "padding", padding, 0);
  require_at_least(op, "dilation", dilation, 1);
  const bool fits = input.rank() == 4 && weight.rank() == 4 && groups >= 1 &&
                    unify(input[1], weight[1] * groups) && weight[0] % groups == Dim(0);
  TENON_CHECK(fits, ShapeError,
              "[{}] input {} and weight {} in {} groups; needed (N, C, H, W) and "
              "(O, C/groups, KH, KW), O divisible by the groups",
              op, input.to_string(), weight.to_string(), groups);
  Shape output{input[0], weight[0]};
  for (int axis = 0; axis < 2; ++axis) {
    const auto i = static_cast<std::size_t>(axis);
    output.push_back(window_positions(op, input[2 + axis], weight[2 + axis], stride[i], padding[i],
                                      dilation[i]));
  }
  return output;
}

std::vector<TensorSpec> infer_conv2d(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  TensorSpec output = context[0];
  output.shape = output_shape(context.op().name, context[0].shape, context[1].shape,
                              context.attributes<Conv2dAttrs>());
  if (context.has(2)) {
    const Shape& bias = context[2].shape;
    TENON_CHECK(bias.rank() == 1 && unify(bias[0], output.shape[1]), ShapeError,
                "[conv2d] weight {} and bias {}; needed ({},)", context[1].shape.to_string(),
                bias.to_string(), output.shape[1].to_string());
  }
  return {output};
}

Conv2dAttrs forward_attrs(const Conv2dBackwardAttrs& a) {
  return {a.stride, a.padding, a.dilation, a.groups};
}

Conv2dBackwardAttrs backward_attrs(const Conv2dAttrs& a, const Shape& shape) {
  return {a.stride, a.padding, a.dilation, a.groups, shape};
}

/// ShapeError unless operand 0 has the shape of conv2d's output.
void require_output_gradient(const InferContext& context, const Shape& input, const Shape& weight) {
  require_floating(context, 0);
  require_same_dtype(context);
  const std::string& op = context.op().name;
  const Shape expected =
      output_shape(op, input, weight, forward_attrs(context.attributes<Conv2dBackwardAttrs>()));
  const Shape& grad = context[0].shape;
  bool fits = grad.rank() == 4;
  for (int axis = 0; fits && axis < 4; ++axis) fits = unify(grad[axis], expected[axis]);
  TENON_CHECK(fits, ShapeError, "[{}] grad {}; needed {}", op, grad.to_string(),
              expected.to_string());
}

std::vector<TensorSpec> infer_backward_input(const InferContext& context) {
  TensorSpec result = context[1];
  result.shape = context.attributes<Conv2dBackwardAttrs>().shape;
  require_output_gradient(context, result.shape, context[1].shape);
  return {result};
}

std::vector<TensorSpec> infer_backward_weight(const InferContext& context) {
  TensorSpec result = context[1];
  result.shape = context.attributes<Conv2dBackwardAttrs>().shape;
  require_output_gradient(context, context[1].shape, result.shape);
  return {result};
}

std::vector<Tensor> vjp_conv2d(const VjpContext& call) {
  const auto& attrs = call.attributes<Conv2dAttrs>();
  const Tensor grad = call.cotangent(0);  // (N, O, H', W')
  std::vector<Tensor> gradients(3);
  if (call.needs(0)) {
    gradients[0] =
        conv2d_backward_input(grad, call.input(1), backward_attrs(attrs, call.input_spec(0).shape));
  }
  if (call.needs(1)) {
    gradients[1] = conv2d_backward_weight(grad, call.input(0),
                                          backward_attrs(attrs, call.input_spec(1).shape));
  }
  if (call.needs(2)) gradients[2] = sum(grad, {0, 2, 3});  // -> (O)
  return gradients;
}

/// Its result is linear in grad, as conv2d is in the input, and in weight.
std::vector<Tensor> vjp_backward_input(const VjpContext& call) {
  const auto& attrs = call.attributes<Conv2dBackwardAttrs>();
  const Tensor cotangent = call.cotangent(0);  // (N, C, H, W)
  std::vector<Tensor> gradients(2);
  if (call.needs(0)) {
    gradients[0] = conv2d_with(cotangent, call.input(1), Tensor(), forward_attrs(attrs));
  }
  if (call.needs(1)) {
    gradients[1] = conv2d_backward_weight(
        call.input(0), cotangent, backward_attrs(forward_attrs(attrs), call.input_spec(1).shape));
  }
  return gradients;
}

std::vector<Tensor> vjp_backward_weight(const VjpContext& call) {
  const auto& attrs = call.attributes<Conv2dBackwardAttrs>();
  const Tensor cotangent = call.cotangent(0);  // (O, C/groups, KH, KW)
  std::vector<Tensor> gradients(2);
  if (call.needs(0)) {
    gradients[0] = conv2d_with(call.input(1), cotangent, Tensor(), forward_attrs(attrs));
  }
  if (call.needs(1)) {
    gradients[1] = conv2d_backward_input(
        call.input(0), cotangent, backward_attrs(forward_attrs(attrs), call.input_spec(1).shape));
  }
  return gradients;
}

}  // namespace

Tensor conv2d_with(const Tensor& input, const Tensor& weight, const Tensor& bias,
                   const Conv2dAttrs& attrs) {
  static const Op& op = get_op("conv2d");
  return apply1(op, {input, weight, bias}, attrs);
}

Tensor conv2d_backward_input(const Tensor& grad, const Tensor& weight,
                             const Conv2dBackwardAttrs& attrs) {
  static const Op& op = get_op("conv2d_backward_input");
  return apply1(op, {grad, weight}, attrs);
}

Tensor conv2d_backward_weight(const Tensor& grad, const Tensor& input,
                              const Conv2dBackwardAttrs& attrs) {
  static const Op& op = get_op("conv2d_backward_weight");
  return apply1(op, {grad, input}, attrs);
}

Op define_conv2d() {
  return OpBuilder("conv2d")
      .doc(
          "Cross-correlation with zero padding: (N, C, H, W), (O, C/groups, KH, KW), (O) -> "
          "(N, O, H', W'), summed in float32 (float64 for float64).")
      .operand("input")
      .operand("weight")
      .optional("bias")
      .infer(infer_conv2d)
      .vjp(vjp_conv2d)
      .saves_inputs({0, 1})
      .cpu({.name = "cpu.conv2d", .run = cpu::conv2d})
      .done();
}

Op define_conv2d_backward_input() {
  return OpBuilder("conv2d_backward_input")
      .doc("The gradient of conv2d's input, of the given shape: (N, O, H', W'), weight.")
      .operand("grad")
      .operand("weight")
      .infer(infer_backward_input)
      .vjp(vjp_backward_input)
      .saves_inputs({0, 1})
      .cpu({.name = "cpu.conv2d_backward_input", .run = cpu::conv2d_backward_input})
      .done();
}

Op define_conv2d_backward_weight() {
  return OpBuilder("conv2d_backward_weight")
      .doc("The gradient of conv2d's weight, of the given shape: (N, O, H', W'), input.")
      .operand("grad")
      .operand("input")
      .infer(infer_backward_weight)
      .vjp(vjp_backward_weight)
      .saves_inputs({0, 1})
      .cpu({.name = "cpu.conv2d_backward_weight", .run = cpu::conv2d_backward_weight})
      .done();
}

}  // namespace ops
}  // namespace tenon
