// relu: the positive part.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor relu(const Tensor& input) {
  static const Op& op = get_op("relu");
  return apply1(op, {input});
}

namespace ops {

Op define_relu() {
  return unary_op("relu", "max(x, 0), elementwise; NaN stays NaN.", infer_numeric_like_input,
                  cpu::unary_kernel<cpu::Numbers>(
                      "cpu.relu", [](auto x) { return cpu::nan_max(x, decltype(x)(0)); }));
}

}  // namespace ops
}  // namespace tenon
