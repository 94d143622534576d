// reciprocal: one over each element.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor reciprocal(const Tensor& input) {
  static const Op& op = get_op("reciprocal");
  return apply1(op, {input});
}

namespace ops {

Op define_reciprocal() {
  return unary_op("reciprocal", "1/x, elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.reciprocal", [](auto x) { return 1 / x; }))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        // -grad/input², without the square, which may overflow.
        const Tensor input = call.input(0);
        return {neg(div(div(call.cotangent(0), input), input))};
      })
      .range(ranges::same_sign)
      .done();
}

}  // namespace ops
}  // namespace tenon
