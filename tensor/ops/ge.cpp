// ge: where a tensor is at least another, or a number.
#include "tensor/cpu/comparison.h"

namespace tenon {

Tensor ge(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("ge");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor ge(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("ge");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_ge() {
  return comparison_op("ge", "input >= other, broadcast; false where either is NaN.",
                       comparison_kernel<Comparison::ge>("cpu.ge"))
      .done();
}

}  // namespace ops
}  // namespace tenon
