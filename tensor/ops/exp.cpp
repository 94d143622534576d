// exp: e to the power of each element.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor exp(const Tensor& input) {
  static const Op& op = get_op("exp");
  return apply1(op, {input});
}

namespace ops {

Op define_exp() {
  return unary_op("exp", "e^x, elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.exp", [](auto x) { return cpu::exp(x); }))
      .saves_outputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {mul(call.cotangent(0), call.output(0))};
      })
      .range(ranges::nonnegative)
      .done();
}

}  // namespace ops
}  // namespace tenon
