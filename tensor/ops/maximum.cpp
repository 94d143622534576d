// maximum: the larger of two tensors, elementwise.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor maximum(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("maximum");
  return apply1(op, {input, other});
}

namespace ops {

Op define_maximum() {
  return OpBuilder("maximum")
      .doc("The larger of input and other, broadcast; NaN where either is NaN.")
      .operand("input")
      .operand("other")
      .trait(Trait::elementwise)
      .trait(Trait::commutative)
      .infer(infer_binary)
      .cpu(cpu::binary_kernel<cpu::AllDTypes>("cpu.maximum",
                                              [](auto x, auto y) { return cpu::nan_max(x, y); }))
      .done();
}

}  // namespace ops
}  // namespace tenon
