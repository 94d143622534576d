// silu: the sigmoid linear unit.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor silu(const Tensor& input) {
  static const Op& op = get_op("silu");
  return apply1(op, {input});
}

namespace ops {

Tensor silu_backward(const Tensor& grad, const Tensor& input) {
  static const Op& op = get_op("silu_backward");
  return apply1(op, {grad, input});
}

namespace {

/// g·s·(1 + x·(1 - s)), s = sigmoid(x).
std::vector<Tensor> decompose_silu_backward(std::span<const Tensor> inputs, const Attrs&) {
  const Tensor s = sigmoid(inputs[1]);
  return {mul(inputs[0], mul(s, add(mul(inputs[1], add(neg(s), 1)), 1)))};
}

}  // namespace

Op define_silu() {
  return unary_op("silu", "x/(1 + e^-x), elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.silu",
                                                 [](auto x) { return x / (1 + cpu::exp(-x)); }))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {silu_backward(call.cotangent(0), call.input(0))};
      })
      .done();
}

Op define_silu_backward() {
  return unary_gradient_op(
             "silu_backward",
             "grad·s·(1 + input·(1 - s)) with s = sigmoid(input), the gradient of silu.", "input",
             cpu::binary_kernel<cpu::Floats>("cpu.silu_backward",
                                             [](auto g, auto x) {
                                               const auto s = cpu::sigmoid(x);
                                               return g * (s * (1 + x * (1 - s)));
                                             }),
             decompose_silu_backward)
      .done();
}

}  // namespace ops
}  // namespace tenon
