// matmul_add: a matrix product added to what is there, as gradients are accumulated.
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/linear_rules.h"

namespace tenon::ops {
namespace {

std::vector<TensorSpec> infer_matmul_add(const InferContext& context) {
  require_same_dtype(context);
  const TensorSpec* operands[] = {&context[0], &context[1]};
  TensorSpec product = infer(get_op("matmul"), operands, {}).at(0);
  require_shape_of_product(context, 2, product.shape);
  return {std::move(product)};
}

std::vector<Tensor> decompose_matmul_add(std::span<const Tensor> inputs, const Attrs&) {
  return {matmul(inputs[0], inputs[1]) + inputs[2]};
}

double count_matmul_add_flops(const KernelArgs& args) {
  return 2.0 * static_cast<double>(args.outputs[0].numel()) *
         static_cast<double>(args.inputs[0].size(-1));
}

}  // namespace

Op define_matmul_add() {
  return OpBuilder("matmul_add")
      .doc(
          "matmul(input, other) + addend, which has the product's shape: (…, M, K) x (…, K, N) + "
          "(…, M, N) -> (…, M, N). Where a kernel does both, 16-bit floats are rounded once.")
      .operand("input")
      .operand("other")
      .operand("addend")
      .infer(infer_matmul_add)
      .decompose(decompose_matmul_add)
      .flops(count_matmul_add_flops)
      .done();
}

}  // namespace tenon::ops
