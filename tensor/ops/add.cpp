// add: sum of two tensors, or of a tensor and a number.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor add(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("add");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor add(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("add");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_add() {
  return binary_op("add", "input + other, broadcast; for bool the logical or.", infer_binary,
                   cpu::binary_kernel<cpu::AllDTypes>(
                       "cpu.add", [](auto x, auto y) { return cpu::wrap_add(x, y); }))
      .trait(Trait::commutative)
      .done();
}

}  // namespace ops
}  // namespace tenon
