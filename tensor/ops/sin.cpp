// sin: sine.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor sin(const Tensor& input) {
  static const Op& op = get_op("sin");
  return apply1(op, {input});
}

namespace ops {

Op define_sin() {
  return unary_op("sin", "sin(x), x in radians, elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.sin", [](auto x) { return std::sin(x); }))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {mul(call.cotangent(0), cos(call.input(0)))};
      })
      .range(ranges::unit)
      .done();
}

}  // namespace ops
}  // namespace tenon
