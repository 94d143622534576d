// lt: where a tensor is less than another, or a number.
#include "tensor/cpu/comparison.h"

namespace tenon {

Tensor lt(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("lt");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor lt(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("lt");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_lt() {
  return comparison_op("lt", "input < other, broadcast; false where either is NaN.",
                       comparison_kernel<Comparison::lt>("cpu.lt"))
      .done();
}

}  // namespace ops
}  // namespace tenon
