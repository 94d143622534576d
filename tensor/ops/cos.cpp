// cos: cosine.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor cos(const Tensor& input) {
  static const Op& op = get_op("cos");
  return apply1(op, {input});
}

namespace ops {

Op define_cos() {
  return unary_op("cos", "cos(x), x in radians, elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.cos", [](auto x) { return std::cos(x); }))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {neg(mul(call.cotangent(0), sin(call.input(0))))};
      })
      .range(ranges::unit)
      .done();
}

}  // namespace ops
}  // namespace tenon
