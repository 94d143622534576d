// linear: a layer's product with its weight, and the bias.
#include "tensor/cpu/linear.h"

#include "tensor/detail/check.h"
#include "tensor/interpreter.h"
#include "tensor/ops/gradients.h"
#include "tensor/ops/infer_rules.h"
#include "tensor/ops/op_list.h"

namespace tenon {

Tensor linear(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  static const Op& op = get_op("linear");
  return apply1(op, {input, weight, bias});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_linear(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  const Shape& input = context[0].shape;
  const Shape& weight = context[1].shape;
  TENON_CHECK(input.rank() >= 1 && weight.rank() == 2, ShapeError,
              "[linear] input {} and weight {}; needed (…, K) and (N, K)", input.to_string(),
              weight.to_string());
  TENON_CHECK(
      unify(input[-1], weight[1]), ShapeError,
      "[linear] input {} and weight {}; the last axis of input ({}) must equal the weight's "
      "second ({})",
      input.to_string(), weight.to_string(), input[-1].to_string(), weight[1].to_string());
  if (context.has(2)) {
    const Shape& bias = context[2].shape;
    TENON_CHECK(bias.rank() == 1 && unify(bias[0], weight[0]), ShapeError,
                "[linear] weight {} and bias {}; needed a bias of shape ({},)", weight.to_string(),
                bias.to_string(), weight[0].to_string());
  }
  Shape shape = input;
  shape[-1] = weight[0];
  return {{context[0].dtype, std::move(shape), context[0].device}};
}

std::vector<Tensor> decompose_linear(std::span<const Tensor> inputs, const Attrs&) {
  const Tensor product = linear(inputs[0], inputs[1]);
  return {inputs[2] ? product + inputs[2] : product};
}

double count_flops(const KernelArgs& args) {
  return 2.0 * static_cast<double>(args.outputs[0].numel()) *
         static_cast<double>(args.inputs[1].size(1));
}

std::vector<Tensor> vjp_linear(const VjpContext& call) {
  const Tensor gradient = call.cotangent(0);  // (…, N)
  std::vector<Tensor> gradients(3);
  // […,N] x [N,K] -> […,K]
  if (call.needs(0)) gradients[0] = matmul(gradient, call.input(1));
  if (!call.needs(1) && !call.needs(2)) return gradients;
  const Tensor rows = as_rows(gradient);  // (R, N)
  // [R,N]^T x [R,K] -> [N,K]
  if (call.needs(1)) gradients[1] = matmul(transpose(rows, 0, 1), as_rows(call.input(0)));
  if (call.needs(2)) gradients[2] = sum(rows, {0});
  return gradients;
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
      .infer(infer_linear)
      .decompose(decompose_linear)
      .flops(count_flops)
      .vjp(vjp_linear)
      .saves_inputs({0, 1})
      .cpu({.name = "cpu.gemm", .run = cpu::linear, .accepts = any_layout, .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
