// sigmoid: the logistic function.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor sigmoid(const Tensor& input) {
  static const Op& op = get_op("sigmoid");
  return apply1(op, {input});
}

namespace ops {

Tensor sigmoid_backward(const Tensor& grad, const Tensor& output) {
  static const Op& op = get_op("sigmoid_backward");
  return apply1(op, {grad, output});
}

namespace {

/// g·y·(1 - y).
std::vector<Tensor> decompose_sigmoid_backward(std::span<const Tensor> inputs, const Attrs&) {
  return {mul(inputs[0], mul(inputs[1], add(neg(inputs[1]), 1)))};
}

}  // namespace

Op define_sigmoid() {
  return unary_op(
             "sigmoid", "1/(1 + e^-x), elementwise.", infer_float_like_input,
             cpu::unary_kernel<cpu::Floats>("cpu.sigmoid", [](auto x) { return cpu::sigmoid(x); }))
      .saves_outputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {sigmoid_backward(call.cotangent(0), call.output(0))};
      })
      .range(ranges::probability)
      .done();
}

Op define_sigmoid_backward() {
  return unary_gradient_op(
             "sigmoid_backward",
             "grad·output·(1 - output), the gradient of sigmoid from its output.", "output",
             cpu::binary_kernel<cpu::Floats>("cpu.sigmoid_backward",
                                             [](auto g, auto y) { return g * y * (1 - y); }),
             decompose_sigmoid_backward)
      .done();
}

}  // namespace ops
}  // namespace tenon
