// div: quotient of two tensors, or of a tensor and a number.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor div(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("div");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor div(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("div");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {
namespace {

std::vector<Tensor> vjp_div(const VjpContext& call) {
  const Tensor grad = call.cotangent(0);
  if (!call.has(1)) return {div(grad, call.attributes<BinaryAttrs>().other)};
  const Tensor slope = div(grad, call.input(1));  // of the quotient by input
  std::vector<Tensor> gradients(2);
  if (call.needs(0)) gradients[0] = sum_to(slope, call.input_spec(0).shape);
  if (call.needs(1)) {  // -grad·input/other², without the square, which may overflow
    const Tensor quotient = div(call.input(0), call.input(1));
    gradients[1] = neg(sum_to(mul(slope, quotient), call.input_spec(1).shape));
  }
  return gradients;
}

}  // namespace

Op define_div() {
  return binary_op("div", "input / other, broadcast; IEEE division.", infer_float_binary,
                   cpu::binary_kernel<cpu::Floats>("cpu.div", [](auto x, auto y) { return x / y; }))
      .saves_inputs({0, 1})
      .vjp(vjp_div)
      .range(ranges::quotient)
      .done();
}

}  // namespace ops
}  // namespace tenon
