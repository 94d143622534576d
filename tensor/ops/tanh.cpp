// tanh: hyperbolic tangent.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor tanh(const Tensor& input) {
  static const Op& op = get_op("tanh");
  return apply1(op, {input});
}

namespace ops {

Tensor tanh_backward(const Tensor& grad, const Tensor& output) {
  static const Op& op = get_op("tanh_backward");
  return apply1(op, {grad, output});
}

namespace {

/// g·(1 - y²).
std::vector<Tensor> decompose_tanh_backward(std::span<const Tensor> inputs, const Attrs&) {
  return {mul(inputs[0], add(neg(square(inputs[1])), 1))};
}

}  // namespace

Op define_tanh() {
  return unary_op("tanh", "tanh(x), elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.tanh", [](auto x) { return cpu::tanh(x); }))
      .saves_outputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {tanh_backward(call.cotangent(0), call.output(0))};
      })
      .range(ranges::unit)
      .done();
}

Op define_tanh_backward() {
  return unary_gradient_op("tanh_backward",
                           "grad·(1 - output²), the gradient of tanh from its output.", "output",
                           cpu::binary_kernel<cpu::Floats>(
                               "cpu.tanh_backward", [](auto g, auto y) { return g * (1 - y * y); }),
                           decompose_tanh_backward)
      .done();
}

}  // namespace ops
}  // namespace tenon
