// le: where a tensor is at most another, or a number.
#include "tensor/cpu/comparison.h"

namespace tenon {

Tensor le(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("le");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor le(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("le");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_le() {
  return comparison_op("le", "input <= other, broadcast; false where either is NaN.",
                       comparison_kernel<Comparison::le>("cpu.le"))
      .done();
}

}  // namespace ops
}  // namespace tenon
