// gt: where a tensor is greater than another, or a number.
#include "tensor/cpu/comparison.h"

namespace tenon {

Tensor gt(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("gt");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor gt(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("gt");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_gt() {
  return comparison_op("gt", "input > other, broadcast; false where either is NaN.",
                       comparison_kernel<Comparison::gt>("cpu.gt"))
      .done();
}

}  // namespace ops
}  // namespace tenon
