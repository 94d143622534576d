// minimum: the smaller of two tensors, elementwise.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor minimum(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("minimum");
  return apply1(op, {input, other});
}

namespace ops {
namespace {

std::vector<Tensor> vjp_minimum(const VjpContext& call) {
  const Tensor input = call.input(0);
  const Tensor other = call.input(1);
  // Equal operands take half of the gradient each; with a NaN both take all of it.
  const Tensor grad = call.cotangent(0);
  const Tensor shared = where(eq(input, other), mul(grad, 0.5), grad);
  std::vector<Tensor> gradients(2);
  if (call.needs(0)) {
    const Tensor taken = masked_fill(shared, gt(input, other), 0);
    gradients[0] = sum_to(taken, call.input_spec(0).shape);
  }
  if (call.needs(1)) {
    const Tensor taken = masked_fill(shared, lt(input, other), 0);
    gradients[1] = sum_to(taken, call.input_spec(1).shape);
  }
  return gradients;
}

}  // namespace

Op define_minimum() {
  return OpBuilder("minimum")
      .doc("The smaller of input and other, broadcast; NaN where either is NaN.")
      .operand("input")
      .operand("other")
      .trait(Trait::elementwise)
      .trait(Trait::commutative)
      .infer(infer_binary)
      .cpu(cpu::binary_kernel<cpu::AllDTypes>("cpu.minimum",
                                              [](auto x, auto y) { return cpu::nan_min(x, y); }))
      .saves_inputs({0, 1})
      .vjp(vjp_minimum)
      .range(ranges::minimum)
      .done();
}

}  // namespace ops
}  // namespace tenon
