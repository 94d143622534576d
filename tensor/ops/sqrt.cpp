// sqrt: square root.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor sqrt(const Tensor& input) {
  static const Op& op = get_op("sqrt");
  return apply1(op, {input});
}

namespace ops {

Op define_sqrt() {
  return unary_op("sqrt", "√x, elementwise: NaN below 0.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.sqrt", [](auto x) { return std::sqrt(x); }))
      .saves_outputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {div(mul(call.cotangent(0), 0.5), call.output(0))};
      })
      .range(ranges::nonnegative)
      .done();
}

}  // namespace ops
}  // namespace tenon
