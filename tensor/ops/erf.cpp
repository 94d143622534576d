// erf: the error function.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor erf(const Tensor& input) {
  static const Op& op = get_op("erf");
  return apply1(op, {input});
}

namespace ops {

Op define_erf() {
  return unary_op("erf", "2/√π · ∫₀ˣ e^(-t²) dt, elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.erf", [](auto x) { return cpu::erf(x); }));
}

}  // namespace ops
}  // namespace tenon
