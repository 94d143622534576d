// log: natural logarithm.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor log(const Tensor& input) {
  static const Op& op = get_op("log");
  return apply1(op, {input});
}

namespace ops {

Op define_log() {
  return unary_op("log", "ln(x), elementwise: -inf at 0, NaN below.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.log", [](auto x) { return std::log(x); }))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {div(call.cotangent(0), call.input(0))};
      })
      .done();
}

}  // namespace ops
}  // namespace tenon
