// layer_norm over the last axes, and its gradients.
#include "tensor/cpu/layer_norm.h"

#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/norm_rules.h"

namespace tenon {

Tensor layer_norm(const Tensor& input, const std::vector<std::int64_t>& normalized_shape,
                  const Tensor& weight, const Tensor& bias, double eps) {
  static const Op& op = get_op("layer_norm");
  ops::require_normalized_shape("layer_norm", input, normalized_shape);
  return apply1(op, {input, weight, bias},
                LayerNormAttrs{static_cast<std::int64_t>(normalized_shape.size()), eps});
}

Tensor layer_norm(const Tensor& input, const Tensor& weight, const Tensor& bias, double eps) {
  static const Op& op = get_op("layer_norm");
  return apply1(op, {input, weight, bias}, LayerNormAttrs{1, eps});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_layer_norm(const InferContext& context) {
  return infer_norm(context, context.attributes<LayerNormAttrs>().axes);
}

std::vector<Tensor> vjp_layer_norm(const VjpContext& call) {
  const auto& attrs = call.attributes<LayerNormAttrs>();
  const NormGradients gradients =
      layer_norm_backward(call.cotangent(0), call.input(0), call.input(1),
                          {attrs.axes, attrs.eps, call.needs(0), call.needs(1), call.needs(2)});
  return {gradients.input, gradients.weight, gradients.bias};
}

std::vector<Tensor> decompose_layer_norm_backward(std::span<const Tensor> inputs,
                                                  const Attrs& attrs) {
  return decompose_norm_backward(inputs, attrs.as<NormBackwardAttrs>(), /*centers=*/true);
}

/// The kernel walks the input by its strides; weight and bias are small, so they are packed.
bool layer_norm_accepts(int operand, const TensorView& view) {
  return operand == 0 || view.is_contiguous();
}

/// The gradient kernel walks grad and input by their strides.
bool layer_norm_backward_accepts(int operand, const TensorView& view) {
  return operand <= 1 || view.is_contiguous();
}

}  // namespace

NormGradients layer_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                  const NormBackwardAttrs& attrs) {
  static const Op& op = get_op("layer_norm_backward");
  return call_norm_backward(op, grad, input, weight, attrs);
}

Op define_layer_norm() {
  return OpBuilder("layer_norm")
      .doc(
          "(x - mean)/√(var + eps)·weight + bias over the last `axes` axes; population variance, "
          "statistics in float32 (float64 for float64). Ba, Kiros, Hinton, 2016.")
      .operand("input")
      .optional("weight")
      .optional("bias")
      .infer(infer_layer_norm)
      .vjp(vjp_layer_norm)
      .saves_inputs({0, 1})
      .cpu({.name = "cpu.layer_norm",
            .run = cpu::layer_norm,
            .accepts = layer_norm_accepts,
            .strided_output = true})
      .done();
}

Op define_layer_norm_backward() {
  return OpBuilder("layer_norm_backward")
      .doc(
          "The gradients of layer_norm that were asked for, of input, weight and bias in this "
          "order. With x̂ the normalized input and g = grad·weight: (g - mean(g) - "
          "x̂·mean(g·x̂))/√(var + eps), Σ grad·x̂ and Σ grad over rows. Statistics are computed "
          "again.")
      .operand("grad")
      .operand("input")
      .optional("weight")
      .infer(infer_norm_backward)
      .decompose(decompose_layer_norm_backward)
      .accumulates_as("layer_norm_backward_add")
      .cpu({.name = "cpu.layer_norm_backward",
            .run = cpu::layer_norm_backward,
            .accepts = layer_norm_backward_accepts})
      .done();
}

Op define_layer_norm_backward_add() {
  return OpBuilder("layer_norm_backward_add")
      .doc("layer_norm_backward with `addend` added to its first gradient before that is rounded.")
      .operand("grad")
      .operand("input")
      .optional("weight")
      .operand("addend")
      .infer(infer_norm_backward)
      .decompose(decompose_layer_norm_backward)
      .cpu({.name = "cpu.layer_norm_backward_add",
            .run = cpu::layer_norm_backward,
            .accepts = layer_norm_backward_accepts})
      .done();
}

}  // namespace ops
}  // namespace tenon
