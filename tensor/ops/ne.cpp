// ne: where a tensor is different from another, or a number.
#include "tensor/cpu/comparison.h"

namespace tenon {

Tensor ne(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("ne");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor ne(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("ne");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_ne() {
  return comparison_op("ne", "input != other, broadcast; NaN differs from everything.",
                       comparison_kernel<Comparison::ne>("cpu.ne"))
      .trait(Trait::commutative)
      .done();
}

}  // namespace ops
}  // namespace tenon
