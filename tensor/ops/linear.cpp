// linear: a layer's product with its weight, and the bias.
#include "tensor/cpu/linear.h"

#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/linear_rules.h"

namespace tenon {

Tensor linear(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  static const Op& op = get_op("linear");
  return apply1(op, {input, weight, bias});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_spec(const InferContext& context) { return {infer_linear(context)}; }

std::vector<Tensor> decompose_linear(std::span<const Tensor> inputs, const Attrs&) {
  const Tensor product = linear(inputs[0], inputs[1]);
  return {inputs[2] ? product + inputs[2] : product};
}

std::vector<Tensor> vjp_linear(const VjpContext& call) {
  return linear_gradients(call, call.cotangent(0));
}

}  // namespace

Op define_linear() {
  return OpBuilder("linear")
      .doc(
          "input·weightᵀ + bias: (…, K), (N, K), (N) -> (…, N). 16-bit floats are summed and the "
          "bias is added in float32, rounded once.")
      .operand("input")
      .operand("weight")
      .optional("bias")
      .infer(infer_spec)
      .decompose(decompose_linear)
      .flops(linear_flops)
      .vjp(vjp_linear)
      .saves_inputs({0, 1})
      .cpu({.name = "cpu.gemm", .run = cpu::linear, .accepts = any_layout, .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
