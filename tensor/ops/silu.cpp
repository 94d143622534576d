// silu: the sigmoid linear unit.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor silu(const Tensor& input) {
  static const Op& op = get_op("silu");
  return apply1(op, {input});
}

namespace ops {

Op define_silu() {
  return unary_op(
      "silu", "x/(1 + e^-x), elementwise.", infer_float_like_input,
      cpu::unary_kernel<cpu::Floats>("cpu.silu", [](auto x) { return x / (1 + cpu::exp(-x)); }));
}

}  // namespace ops
}  // namespace tenon
