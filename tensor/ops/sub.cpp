// sub: difference of two tensors, or of a tensor and a number.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor sub(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("sub");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor sub(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("sub");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {
namespace {

std::vector<Tensor> vjp_sub(const VjpContext& call) {
  const Tensor grad = call.cotangent(0);
  std::vector<Tensor> gradients(2);
  if (call.needs(0)) gradients[0] = sum_to(grad, call.input_spec(0).shape);
  if (call.needs(1)) gradients[1] = neg(sum_to(grad, call.input_spec(1).shape));
  return gradients;
}

}  // namespace

Op define_sub() {
  return binary_op("sub", "input - other, broadcast.", infer_numeric_binary,
                   cpu::binary_kernel<cpu::Numbers>(
                       "cpu.sub", [](auto x, auto y) { return cpu::wrap_sub(x, y); }))
      .vjp(vjp_sub)
      .range(ranges::difference)
      .done();
}

}  // namespace ops
}  // namespace tenon
