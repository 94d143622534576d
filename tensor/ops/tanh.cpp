// tanh: hyperbolic tangent.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor tanh(const Tensor& input) {
  static const Op& op = get_op("tanh");
  return apply1(op, {input});
}

namespace ops {

Op define_tanh() {
  return unary_op("tanh", "tanh(x), elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.tanh", [](auto x) { return cpu::tanh(x); }));
}

}  // namespace ops
}  // namespace tenon
