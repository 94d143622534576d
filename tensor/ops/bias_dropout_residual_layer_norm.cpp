// bias_dropout_residual_layer_norm: the tail of a residual block in one kernel.
#include "tensor/cpu/layer_norm.h"
#include "tensor/detail/bias_rules.h"
#include "tensor/detail/check.h"
#include "tensor/detail/dropout_call.h"
#include "tensor/interpreter.h"
#include "tensor/ops/gradients.h"
#include "tensor/ops/infer_rules.h"
#include "tensor/ops/op_list.h"

namespace tenon {

Tensor bias_dropout_residual_layer_norm(const Tensor& input, const Tensor& bias,
                                        const Tensor& residual, const Tensor& weight,
                                        const Tensor& norm_bias, double p, double eps,
                                        DropoutMode mode) {
  constexpr auto kName = "bias_dropout_residual_layer_norm";
  static const Op& op = get_op(kName);
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

/// The gradients of the composition; what was normalized is computed again instead of kept.
std::vector<Tensor> vjp_fused(const VjpContext& call) {
  const auto& attrs = call.attributes<BiasDropoutResidualLayerNormAttrs>();
  const DropoutAttrs drop{attrs.p, attrs.mode, attrs.site};
  const Tensor sum_in = dropout_with(call.input(0) + call.input(1), drop) + call.input(2);
  const bool reaches_sum = call.needs(0) || call.needs(1) || call.needs(2);
  const NormGradients norm =
      layer_norm_backward(call.cotangent(0), sum_in, call.input(3),
                          {1, attrs.eps, reaches_sum, call.needs(3), call.needs(4)});
  std::vector<Tensor> gradients{{}, {}, norm.input, norm.weight, norm.bias};
  if (call.needs(0) || call.needs(1)) gradients[0] = dropout_with(norm.input, drop);
  if (call.needs(1)) gradients[1] = sum(as_rows(gradients[0]), {0});
  return gradients;
}

std::vector<Attrs> pattern_attrs() {
  return {BiasDropoutResidualLayerNormAttrs{Any(0), Any(1), DropoutMode::follow, Any(3)}};
}

}  // namespace

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

}  // namespace ops
}  // namespace tenon
