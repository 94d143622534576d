// sigmoid: the logistic function.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor sigmoid(const Tensor& input) {
  static const Op& op = get_op("sigmoid");
  return apply1(op, {input});
}

namespace ops {

Op define_sigmoid() {
  return unary_op(
      "sigmoid", "1/(1 + e^-x), elementwise.", infer_float_like_input,
      cpu::unary_kernel<cpu::Floats>("cpu.sigmoid", [](auto x) { return cpu::sigmoid(x); }));
}

}  // namespace ops
}  // namespace tenon
