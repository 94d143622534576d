// rms_norm over the last axes, and its gradients.
#include <limits>

#include "tensor/cpu/layer_norm.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/norm_rules.h"

namespace tenon {

Tensor rms_norm(const Tensor& input, const std::vector<std::int64_t>& normalized_shape,
                const Tensor& weight, std::optional<double> eps) {
  static const Op& op = get_op("rms_norm");
  ops::require_normalized_shape("rms_norm", input, normalized_shape);
  // The machine epsilon is twice the unit roundoff.
  const double epsilon = eps ? *eps : 2 * unit_roundoff(input.dtype());
  return apply1(op, {input, weight},
                LayerNormAttrs{static_cast<std::int64_t>(normalized_shape.size()), epsilon});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_rms_norm(const InferContext& context) {
  return infer_norm(context, context.attributes<LayerNormAttrs>().axes);
}

std::vector<Tensor> vjp_rms_norm(const VjpContext& call) {
  const auto& attrs = call.attributes<LayerNormAttrs>();
  const NormGradients gradients =
      rms_norm_backward(call.cotangent(0), call.input(0), call.input(1),
                        {attrs.axes, attrs.eps, call.needs(0), call.needs(1), false});
  return {gradients.input, gradients.weight};
}

std::vector<Tensor> decompose_rms_norm_backward(std::span<const Tensor> inputs,
                                                const Attrs& attrs) {
  return decompose_norm_backward(inputs, attrs.as<NormBackwardAttrs>(), /*centers=*/false);
}

/// The kernels walk grad and input by their strides; the weight is small, so it is packed.
bool rms_norm_accepts(int operand, const TensorView& view) {
  return operand == 0 || view.is_contiguous();
}
bool rms_norm_backward_accepts(int operand, const TensorView& view) {
  return operand <= 1 || view.is_contiguous();
}

}  // namespace

NormGradients rms_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                const NormBackwardAttrs& attrs) {
  static const Op& op = get_op("rms_norm_backward");
  return call_norm_backward(op, grad, input, weight, attrs);
}

Op define_rms_norm() {
  return OpBuilder("rms_norm")
      .doc(
          "x/√(mean(x²) + eps)·weight over the last `axes` axes, the mean in float32 (float64 for "
          "float64). Zhang, Sennrich, 2019.")
      .operand("input")
      .optional("weight")
      .infer(infer_rms_norm)
      .vjp(vjp_rms_norm)
      .saves_inputs({0, 1})
      .cpu({.name = "cpu.rms_norm",
            .run = cpu::rms_norm,
            .accepts = rms_norm_accepts,
            .strided_output = true})
      .done();
}

Op define_rms_norm_backward() {
  return OpBuilder("rms_norm_backward")
      .doc(
          "The gradients of rms_norm that were asked for, of input and weight in this order. With "
          "x̂ = x/√(mean(x²) + eps) and g = grad·weight: (g - x̂·mean(g·x̂))/√(mean(x²) + eps) and "
          "Σ grad·x̂ over rows.")
      .operand("grad")
      .operand("input")
      .optional("weight")
      .infer(infer_norm_backward)
      .decompose(decompose_rms_norm_backward)
      .accumulates_as("rms_norm_backward_add")
      .cpu({.name = "cpu.rms_norm_backward",
            .run = cpu::rms_norm_backward,
            .accepts = rms_norm_backward_accepts})
      .done();
}

Op define_rms_norm_backward_add() {
  return OpBuilder("rms_norm_backward_add")
      .doc("rms_norm_backward with `addend` added to its first gradient before that is rounded.")
      .operand("grad")
      .operand("input")
      .optional("weight")
      .operand("addend")
      .infer(infer_norm_backward)
      .decompose(decompose_rms_norm_backward)
      .cpu({.name = "cpu.rms_norm_backward_add",
            .run = cpu::rms_norm_backward,
            .accepts = rms_norm_backward_accepts})
      .done();
}

}  // namespace ops
}  // namespace tenon
