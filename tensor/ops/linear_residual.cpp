// linear_residual: linear(input, weight, bias) + residual, the end of a residual branch.
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/linear_rules.h"
#include "tensor/tensor.h"

namespace tenon {

Tensor linear_residual(const Tensor& input, const Tensor& weight, const Tensor& bias,
                       const Tensor& residual) {
  static const Op& op = get_op("linear_residual");
  return apply1(op, {input, weight, bias, residual});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_linear_residual(const InferContext& context) {
  TensorSpec spec = infer_linear(context);
  require_shape_of_product(context, 3, spec.shape);
  return {std::move(spec)};
}

std::vector<Tensor> decompose_linear_residual(std::span<const Tensor> inputs, const Attrs&) {
  return {linear(inputs[0], inputs[1], inputs[2]) + inputs[3]};
}

std::vector<Tensor> vjp_linear_residual(const VjpContext& call) {
  const Tensor gradient = call.cotangent(0);  // (…, N)
  std::vector<Tensor> gradients = linear_gradients(call, gradient);
  gradients.push_back(gradient);
  return gradients;
}

std::vector<Attrs> linear_residual_patterns() { return {Attrs()}; }

}  // namespace

Op define_linear_residual() {
  return OpBuilder("linear_residual")
      .doc(
          "linear(input, weight, bias) + residual: (…, K), (N, K), (N), (…, N) -> (…, N). Where a "
          "kernel does both, 16-bit floats are rounded once, at the end.")
      .operand("input")
      .operand("weight")
      .optional("bias")
      .operand("residual")
      .infer(infer_linear_residual)
      .decompose(decompose_linear_residual)
      .pattern_attrs(linear_residual_patterns)
      .flops(linear_flops)
      .vjp(vjp_linear_residual)
      .saves_inputs({0, 1})
      .done();
}

}  // namespace ops
}  // namespace tenon
