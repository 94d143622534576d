// mul: product of two tensors, or of a tensor and a number, elementwise.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor mul(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("mul");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor mul(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("mul");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_mul() {
  return binary_op("mul", "input · other, broadcast; for bool the logical and.", infer_binary,
                   cpu::binary_kernel<cpu::AllDTypes>(
                       "cpu.mul", [](auto x, auto y) { return cpu::wrap_mul(x, y); }))
      .trait(Trait::commutative)
      .done();
}

}  // namespace ops
}  // namespace tenon
