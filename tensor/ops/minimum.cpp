// minimum: the smaller of two tensors, elementwise.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor minimum(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("minimum");
  return apply1(op, {input, other});
}

namespace ops {

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
      .done();
}

}  // namespace ops
}  // namespace tenon
