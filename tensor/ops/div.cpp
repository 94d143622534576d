// div: quotient of two tensors, or of a tensor and a number.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor div(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("div");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor div(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("div");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {

Op define_div() {
  return binary_op("div", "input / other, broadcast; IEEE division.", infer_float_binary,
                   cpu::binary_kernel<cpu::Floats>("cpu.div", [](auto x, auto y) { return x / y; }))
      .done();
}

}  // namespace ops
}  // namespace tenon
