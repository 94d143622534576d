// abs: magnitude.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor abs(const Tensor& input) {
  static const Op& op = get_op("abs");
  return apply1(op, {input});
}

namespace ops {

Op define_abs() {
  return unary_op("abs", "|x|, elementwise; the lowest integer stays as it is.",
                  infer_numeric_like_input, cpu::unary_kernel<cpu::Numbers>("cpu.abs", [](auto x) {
                    if constexpr (std::is_floating_point_v<decltype(x)>)
                      return std::fabs(x);
                    else
                      return x < 0 ? cpu::wrap_sub(decltype(x)(0), x) : x;
                  }));
}

}  // namespace ops
}  // namespace tenon
