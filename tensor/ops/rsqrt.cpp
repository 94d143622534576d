// rsqrt: reciprocal square root.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor rsqrt(const Tensor& input) {
  static const Op& op = get_op("rsqrt");
  return apply1(op, {input});
}

namespace ops {

Op define_rsqrt() {
  return unary_op(
             "rsqrt", "1/√x, elementwise: inf at 0, NaN below.", infer_float_like_input,
             cpu::unary_kernel<cpu::Floats>("cpu.rsqrt", [](auto x) { return 1 / std::sqrt(x); }))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {div(mul(mul(call.cotangent(0), -0.5), rsqrt(call.input(0))), call.input(0))};
      })
      .range(ranges::nonnegative)
      .done();
}

}  // namespace ops
}  // namespace tenon
