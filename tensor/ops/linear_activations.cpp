// linear_gelu, linear_relu and linear_silu: an activation of linear(input, weight, bias), the first half of
// a Transformer's feed-forward part. GELU's and SiLU's gradient reads the activation's input, which the
// op ending in _aux, recorded in their place, returns as well; ReLU's reads the result.
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/activation.h"
#include "tensor/rules/linear_rules.h"
#include "tensor/value_range.h"

namespace tenon {

Tensor linear_gelu(const Tensor& input, const Tensor& weight, const Tensor& bias,
                   Approximate approximate) {
  static const Op& op = get_op("linear_gelu");
  return apply1(op, {input, weight, bias}, GeluAttrs{approximate});
}

Tensor linear_relu(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  static const Op& op = get_op("linear_relu");
  return apply1(op, {input, weight, bias});
}

Tensor linear_silu(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  static const Op& op = get_op("linear_silu");
  return apply1(op, {input, weight, bias});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_output(const InferContext& context) {
  return {infer_linear(context)};
}

std::vector<TensorSpec> infer_output_and_input(const InferContext& context) {
  const TensorSpec spec = infer_linear(context);
  return {spec, spec};
}

template <const Activation& kActivation>
std::vector<Tensor> decompose_linear(std::span<const Tensor> inputs, const Attrs& attrs) {
  return {kActivation.value(linear(inputs[0], inputs[1], inputs[2]), attrs)};
}

template <const Activation& kActivation>
std::vector<Tensor> decompose_aux(std::span<const Tensor> inputs, const Attrs& attrs) {
  const Tensor pre_activation = linear(inputs[0], inputs[1], inputs[2]);
  return {kActivation.value(pre_activation, attrs), pre_activation};
}

/// With a second result, gradients may reach that too; mostly none does.
template <const Activation& kActivation>
std::vector<Tensor> vjp_linear(const VjpContext& call) {
  Tensor gradient = kActivation.from_output ? Tensor() : call.cotangent(1);  // (…, N)
  if (const Tensor of_output = call.cotangent(0)) {
    const Tensor kept = call.output(kActivation.from_output ? 0 : 1);
    const Tensor through = kActivation.gradient(of_output, kept, call.attrs());
    gradient = gradient ? gradient + through : through;
  }
  return linear_gradients(call, gradient);
}

OpBuilder linear_builder(std::string_view name, std::string_view doc) {
  OpBuilder builder(name);
  builder.doc(doc).operand("input").operand("weight").optional("bias").flops(linear_flops);
  return builder;
}

std::vector<Attrs> gelu_patterns() {
  return {GeluAttrs{Approximate::none}, GeluAttrs{Approximate::tanh}};
}

std::vector<Attrs> one_pattern() { return {Attrs()}; }

template <const Activation& kActivation>
Op define_aux(std::string_view name, std::string_view doc, std::string_view activation) {
  return linear_builder(name, doc)
      .infer(infer_output_and_input)
      .decompose(decompose_aux<kActivation>)
      .vjp(vjp_linear<kActivation>)
      .saves_inputs({0, 1})
      .saves_outputs({1})
      .rederived_by(activation)
      .done();
}

}  // namespace

Op define_linear_gelu() {
  return linear_builder("linear_gelu",
                        "gelu(linear(input, weight, bias), approximate): (…, K), (N, K), (N) -> "
                        "(…, N). Where a kernel does both, 16-bit floats are rounded once, at the "
                        "end.")
      .infer(infer_output)
      .decompose(decompose_linear<kGelu>)
      .pattern_attrs(gelu_patterns)
      .recorded_as("linear_gelu_aux")
      .done();
}

Op define_linear_gelu_aux() {
  return define_aux<kGelu>(
      "linear_gelu_aux",
      "linear_gelu and, as second result, the activation's input linear(input, weight, bias), "
      "which its gradient reads: (…, K), (N, K), (N) -> (…, N), (…, N).",
      "gelu");
}

Op define_linear_relu() {
  return linear_builder("linear_relu",
                        "relu(linear(input, weight, bias)): (…, K), (N, K), (N) -> (…, N). Where a "
                        "kernel does both, 16-bit floats are rounded once, at the end.")
      .infer(infer_output)
      .decompose(decompose_linear<kRelu>)
      .pattern_attrs(one_pattern)
      .vjp(vjp_linear<kRelu>)
      .saves_inputs({0, 1})
      .saves_outputs({0})
      .range(ranges::nonnegative)
      .done();
}

Op define_linear_silu() {
  return linear_builder("linear_silu",
                        "silu(linear(input, weight, bias)): (…, K), (N, K), (N) -> (…, N). Where a "
                        "kernel does both, 16-bit floats are rounded once, at the end.")
      .infer(infer_output)
      .decompose(decompose_linear<kSilu>)
      .pattern_attrs(one_pattern)
      .recorded_as("linear_silu_aux")
      .done();
}

Op define_linear_silu_aux() {
  return define_aux<kSilu>(
      "linear_silu_aux",
      "linear_silu and, as second result, the activation's input linear(input, weight, bias), "
      "which its gradient reads: (…, K), (N, K), (N) -> (…, N), (…, N).",
      "silu");
}

}  // namespace ops
}  // namespace tenon
