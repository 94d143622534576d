// matmul_gelu_backward and its like: what a layer hands back through the activation before it.
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/activation.h"

namespace tenon::ops {
namespace {

template <const Activation& kActivation>
std::vector<Tensor> decompose_product(std::span<const Tensor> inputs, const Attrs& attrs) {
  return {kActivation.gradient(matmul(inputs[0], inputs[1]), inputs[2], attrs)};
}

std::vector<Tensor> decompose_again(std::span<const Tensor> inputs, const Attrs& attrs) {
  return {apply1(get_op("matmul_gelu_backward"), {inputs[0], inputs[1], inputs[2]}, attrs),
          kGelu.value(inputs[2], attrs)};
}

double count_product_flops(const KernelArgs& args) {
  return 2.0 * static_cast<double>(args.outputs[0].numel()) *
         static_cast<double>(args.inputs[0].size(-1));
}

/// `kept`: what the slope is computed from.
OpBuilder product_builder(std::string_view name, std::string_view kept, std::string_view doc) {
  OpBuilder builder(name);
  builder.doc(doc).operand("grad").operand("weight").operand(kept).flops(count_product_flops);
  return builder;
}

}  // namespace

Op define_matmul_gelu_backward() {
  return product_builder("matmul_gelu_backward", "input",
                         "matmul(grad, weight) times the slope of gelu at input, for the same "
                         "approximate: (…, M, N) x (N, K), (…, M, K) -> (…, M, K). Where a kernel "
                         "does both, 16-bit floats are rounded once.")
      .decompose(decompose_product<kGelu>)
      .done();
}

Op define_matmul_gelu_backward_again() {
  return product_builder("matmul_gelu_backward_again", "input",
                         "matmul_gelu_backward and, as second result, gelu(input), for a step that "
                         "did not keep it: (…, M, N) x (N, K), (…, M, K) -> (…, M, K), (…, M, K).")
      .decompose(decompose_again)
      .done();
}

Op define_matmul_relu_backward() {
  return product_builder("matmul_relu_backward", "output",
                         "matmul(grad, weight) where output > 0, else 0, the gradient of relu from "
                         "its output: (…, M, N) x (N, K), (…, M, K) -> (…, M, K).")
      .decompose(decompose_product<kRelu>)
      .done();
}

Op define_matmul_silu_backward() {
  return product_builder("matmul_silu_backward", "input",
                         "matmul(grad, weight) times the slope of silu at input: (…, M, N) x "
                         "(N, K), (…, M, K) -> (…, M, K). Where a kernel does both, 16-bit floats "
                         "are rounded once.")
      .decompose(decompose_product<kSilu>)
      .done();
}

}  // namespace tenon::ops
