// bias_dropout_residual_layer_norm: the tail of a residual block in one kernel.
#include <algorithm>
#include <array>

#include "tensor/calls/dropout_call.h"
#include "tensor/calls/taken_numbers.h"
#include "tensor/cpu/layer_norm.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/bias_rules.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor bias_dropout_residual_layer_norm(const Tensor& input, const Tensor& bias,
                                        const Tensor& residual, const Tensor& weight,
                                        const Tensor& norm_bias, double p, double eps,
                                        DropoutMode mode) {
  constexpr auto kName = "bias_dropout_residual_layer_norm";
  static const Op& op = get_op(kName);
  const ops::TakenNumbers taken;
  const DropoutAttrs dropout = ops::dropout_call(kName, p, mode);
  return apply1(op, {input, bias, residual, weight, norm_bias},
                BiasDropoutResidualLayerNormAttrs{dropout.p, eps, dropout.mode, dropout.site});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_fused(const InferContext& context) {
  const std::string& op = context.op().name;
  require_floating(context, 0);
  require_same_dtype(context);
  const Shape& input = context[0].shape;
  const Shape& residual = context[2].shape;
  bool fits = residual.rank() == input.rank();
  for (int axis = 0; fits && axis < input.rank(); ++axis) fits = unify(input[axis], residual[axis]);
  TENON_CHECK(fits, ShapeError, "[{}] input {} and residual {}; needed equal shapes", op,
              input.to_string(), residual.to_string());
  for (const int i : {1, 3, 4}) require_last_axis_vector(context, 0, i);
  return {context[0]};
}

std::vector<Tensor> decompose(std::span<const Tensor> inputs, const Attrs& attributes) {
  const auto& attrs = attributes.as<BiasDropoutResidualLayerNormAttrs>();
  const Tensor shifted = dropout_with(inputs[0] + inputs[1], {attrs.p, attrs.mode, attrs.site});
  return {layer_norm(shifted + inputs[2], inputs[3], inputs[4], attrs.eps)};
}

/// Whether the gradient of each operand of the forward op is asked for.
std::array<bool, 5> wanted(const ResidualNormBackwardAttrs& attrs) {
  return {attrs.input, attrs.bias, attrs.residual, attrs.weight, attrs.norm_bias};
}

std::vector<Tensor> vjp_fused(const VjpContext& call) {
  const ResidualNormBackwardAttrs attrs{call.attributes<BiasDropoutResidualLayerNormAttrs>(),
                                        call.needs(0),
                                        call.needs(1),
                                        call.needs(2),
                                        call.needs(3),
                                        call.needs(4)};
  const std::vector<Tensor> found = bias_dropout_residual_layer_norm_backward(
      call.cotangent(0), call.input(0), call.input(1), call.input(2), call.input(3), attrs);
  std::vector<Tensor> gradients(5);
  auto next = found.begin();
  for (int i = 0; i < 5; ++i) {
    if (call.needs(i)) gradients[static_cast<std::size_t>(i)] = *next++;
  }
  return gradients;
}

std::vector<TensorSpec> infer_backward(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  require_same_shape(context, 0, 1);
  require_same_shape(context, 1, 3);
  for (const int i : {2, 4}) require_last_axis_vector(context, 1, i);
  const TensorSpec& input = context[1];
  const TensorSpec& vector = context[4];
  const TensorSpec* specs[] = {&input, &vector, &input, &vector, &vector};
  const std::array<bool, 5> asked = wanted(context.attributes<ResidualNormBackwardAttrs>());
  std::vector<TensorSpec> outputs;
  for (std::size_t i = 0; i < asked.size(); ++i) {
    if (asked[i]) outputs.push_back(*specs[i]);
  }
  return outputs;
}

/// The gradients of the composition.
std::vector<Tensor> decompose_backward(std::span<const Tensor> inputs, const Attrs& attributes) {
  const auto& attrs = attributes.as<ResidualNormBackwardAttrs>();
  const DropoutAttrs drop{attrs.p, attrs.mode, attrs.site};
  const Tensor sum_in = dropout_with(inputs[1] + inputs[2], drop) + inputs[3];
  const bool reaches_sum = attrs.input || attrs.bias || attrs.residual;
  const NormGradients norm = layer_norm_backward(
      inputs[0], sum_in, inputs[4], {1, attrs.eps, reaches_sum, attrs.weight, attrs.norm_bias});
  Tensor dropped, bias;
  if (attrs.input || attrs.bias) dropped = dropout_with(norm.input, drop);
  if (attrs.bias) bias = sum(as_rows(dropped), {0});
  const Tensor gradients[] = {dropped, bias, norm.input, norm.weight, norm.bias};
  const std::array<bool, 5> asked = wanted(attrs);
  std::vector<Tensor> outputs;
  for (std::size_t i = 0; i < asked.size(); ++i) {
    if (asked[i]) outputs.push_back(gradients[i]);
  }
  return outputs;
}

std::vector<Attrs> pattern_attrs() {
  return {BiasDropoutResidualLayerNormAttrs{Any(0), Any(1), DropoutMode::follow, Any(3)}};
}

}  // namespace

std::vector<Tensor> bias_dropout_residual_layer_norm_backward(
    const Tensor& grad, const Tensor& input, const Tensor& bias, const Tensor& residual,
    const Tensor& weight, const ResidualNormBackwardAttrs& attrs) {
  static const Op& op = get_op("bias_dropout_residual_layer_norm_backward");
  const std::array<bool, 5> asked = wanted(attrs);
  if (std::ranges::count(asked, true) == 0) return {};
  const Tensor inputs[] = {grad, input, bias, residual, weight};
  return apply(op, inputs, attrs);
}

Op define_bias_dropout_residual_layer_norm() {
  return OpBuilder("bias_dropout_residual_layer_norm")
      .doc(
          "layer_norm(dropout(input + bias, p) + residual, weight, norm_bias, eps) over the last "
          "axis: (…, N), (N), (…, N), (N), (N) -> (…, N). 16-bit floats are rounded once, at the "
          "end.")
      .operand("input")
      .operand("bias")
      .operand("residual")
      .operand("weight")
      .operand("norm_bias")
      .trait(Trait::random)
      .infer(infer_fused)
      .decompose(decompose)
      .pattern_attrs(pattern_attrs)
      .vjp(vjp_fused)
      .saves_inputs({0, 1, 2, 3})
      .cpu({.name = "cpu.bias_dropout_residual_layer_norm",
            .run = cpu::bias_dropout_residual_layer_norm,
            .accepts = last_axis_dense,
            .strided_output = true})
      .done();
}

Op define_bias_dropout_residual_layer_norm_backward() {
  return OpBuilder("bias_dropout_residual_layer_norm_backward")
      .doc(
          "The gradients of bias_dropout_residual_layer_norm that were asked for, of input, bias, "
          "residual, weight and norm_bias in this order. The sum, the dropout mask and the "
          "statistics are computed again.")
      .operand("grad")
      .operand("input")
      .operand("bias")
      .operand("residual")
      .operand("weight")
      .trait(Trait::random)
      .infer(infer_backward)
      .decompose(decompose_backward)
      .cpu({.name = "cpu.bias_dropout_residual_layer_norm_backward",
            .run = cpu::bias_dropout_residual_layer_norm_backward,
            .accepts = last_axis_dense})
      .done();
}

}  // namespace ops
}  // namespace tenon
