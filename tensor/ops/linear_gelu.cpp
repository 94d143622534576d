// linear_gelu: gelu(linear(input, weight, bias)), the first half of a Transformer's feed-forward part.
#include "tensor/detail/linear_rules.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/gradients.h"
#include "tensor/ops/op_list.h"

namespace tenon {

Tensor linear_gelu(const Tensor& input, const Tensor& weight, const Tensor& bias,
                   Approximate approximate) {
  static const Op& op = get_op("linear_gelu");
  return apply1(op, {input, weight, bias}, GeluAttrs{approximate});
}

namespace ops {
namespace {

Approximate form_of(const Attrs& attrs) { return attrs.as<GeluAttrs>().approximate; }

std::vector<TensorSpec> infer_output(const InferContext& context) {
  return {infer_linear(context)};
}

std::vector<TensorSpec> infer_output_and_input(const InferContext& context) {
  const TensorSpec spec = infer_linear(context);
  return {spec, spec};
}

std::vector<Tensor> decompose_linear_gelu(std::span<const Tensor> inputs, const Attrs& attrs) {
  return {gelu(linear(inputs[0], inputs[1], inputs[2]), form_of(attrs))};
}

std::vector<Tensor> decompose_aux(std::span<const Tensor> inputs, const Attrs& attrs) {
  const Tensor pre_activation = linear(inputs[0], inputs[1], inputs[2]);
  return {gelu(pre_activation, form_of(attrs)), pre_activation};
}

std::vector<Tensor> vjp_linear_gelu_aux(const VjpContext& call) {
  Tensor gradient = call.cotangent(1);  // (…, N), of the pre-activation; mostly undefined
  if (const Tensor of_output = call.cotangent(0)) {
    const Tensor through = gelu_backward(of_output, call.output(1), form_of(call.attrs()));
    gradient = gradient ? gradient + through : through;
  }
  return linear_gradients(call, gradient);
}

std::vector<Attrs> linear_gelu_patterns() {
  return {GeluAttrs{Approximate::none}, GeluAttrs{Approximate::tanh}};
}

}  // namespace

Op define_linear_gelu() {
  return OpBuilder("linear_gelu")
      .doc(
          "gelu(linear(input, weight, bias), approximate): (…, K), (N, K), (N) -> (…, N). Where a "
          "kernel does both, 16-bit floats are rounded once, at the end.")
      .operand("input")
      .operand("weight")
      .optional("bias")
      .infer(infer_output)
      .decompose(decompose_linear_gelu)
      .pattern_attrs(linear_gelu_patterns)
      .flops(linear_flops)
      .recorded_as("linear_gelu_aux")
      .done();
}

Op define_linear_gelu_aux() {
  return OpBuilder("linear_gelu_aux")
      .doc(
          "linear_gelu and, as second result, the activation's input linear(input, weight, bias), "
          "which its gradient reads: (…, K), (N, K), (N) -> (…, N), (…, N).")
      .operand("input")
      .operand("weight")
      .optional("bias")
      .infer(infer_output_and_input)
      .decompose(decompose_aux)
      .flops(linear_flops)
      .vjp(vjp_linear_gelu_aux)
      .saves_inputs({0, 1})
      .saves_outputs({1})
      .rederived_by("gelu")
      .done();
}

}  // namespace ops
}  // namespace tenon
