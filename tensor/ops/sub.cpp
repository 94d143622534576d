// sub: difference of two tensors, or of a tensor and a number.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor sub(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("sub");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor sub(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("sub");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_sub() {
  return binary_op("sub", "input - other, broadcast.", infer_numeric_binary,
                   cpu::binary_kernel<cpu::Numbers>(
                       "cpu.sub", [](auto x, auto y) { return cpu::wrap_sub(x, y); }))
      .done();
}

}  // namespace ops
}  // namespace tenon
