// eq: where a tensor is equal to another, or a number.
#include "tensor/cpu/comparison.h"

namespace tenon {

Tensor eq(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("eq");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor eq(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("eq");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_eq() {
  return comparison_op("eq", "input == other, broadcast; NaN equals nothing.",
                       comparison_kernel<Comparison::eq>("cpu.eq"))
      .trait(Trait::commutative)
      .done();
}

}  // namespace ops
}  // namespace tenon
