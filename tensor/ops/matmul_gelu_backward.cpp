// matmul_gelu_backward: what a layer hands back through the activation before it.
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/gradients.h"
#include "tensor/ops/op_list.h"

namespace tenon::ops {
namespace {

std::vector<Tensor> decompose_matmul_gelu_backward(std::span<const Tensor> inputs,
                                                   const Attrs& attrs) {
  return {
      gelu_backward(matmul(inputs[0], inputs[1]), inputs[2], attrs.as<GeluAttrs>().approximate)};
}

std::vector<Tensor> decompose_again(std::span<const Tensor> inputs, const Attrs& attrs) {
  return {apply1(get_op("matmul_gelu_backward"), {inputs[0], inputs[1], inputs[2]}, attrs),
          gelu(inputs[2], attrs.as<GeluAttrs>().approximate)};
}

double count_matmul_gelu_backward_flops(const KernelArgs& args) {
  return 2.0 * static_cast<double>(args.outputs[0].numel()) *
         static_cast<double>(args.inputs[0].size(-1));
}

}  // namespace

Op define_matmul_gelu_backward() {
  return OpBuilder("matmul_gelu_backward")
      .doc(
          "matmul(grad, weight) times the slope of gelu at input, for the same approximate: "
          "(…, M, N) x (N, K), (…, M, K) -> (…, M, K). Where a kernel does both, 16-bit floats are "
          "rounded once.")
      .operand("grad")
      .operand("weight")
      .operand("input")
      .decompose(decompose_matmul_gelu_backward)
      .flops(count_matmul_gelu_backward_flops)
      .done();
}

Op define_matmul_gelu_backward_again() {
  return OpBuilder("matmul_gelu_backward_again")
      .doc(
          "matmul_gelu_backward and, as second result, gelu(input), for a step that did not keep "
          "it: "
          "(…, M, N) x (N, K), (…, M, K) -> (…, M, K), (…, M, K).")
      .operand("grad")
      .operand("weight")
      .operand("input")
      .decompose(decompose_again)
      .flops(count_matmul_gelu_backward_flops)
      .done();
}

}  // namespace tenon::ops
