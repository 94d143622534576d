// relu: the positive part.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor relu(const Tensor& input) {
  static const Op& op = get_op("relu");
  return apply1(op, {input});
}

namespace ops {

Tensor relu_backward(const Tensor& grad, const Tensor& output) {
  static const Op& op = get_op("relu_backward");
  return apply1(op, {grad, output});
}

namespace {

/// g where y > 0; a NaN passes it on.
std::vector<Tensor> decompose_relu_backward(std::span<const Tensor> inputs, const Attrs&) {
  return {masked_fill(inputs[0], le(inputs[1], 0), 0)};
}

}  // namespace

Op define_relu() {
  return unary_op("relu", "max(x, 0), elementwise; NaN stays NaN.", infer_numeric_like_input,
                  cpu::unary_kernel<cpu::Numbers>(
                      "cpu.relu", [](auto x) { return cpu::nan_max(x, decltype(x)(0)); }))
      .saves_outputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {relu_backward(call.cotangent(0), call.output(0))};
      })
      .range(ranges::positive_part)
      .done();
}

Op define_relu_backward() {
  return unary_gradient_op(
             "relu_backward",
             "grad where output > 0, else 0: the gradient of relu from its output.", "output",
             cpu::binary_kernel<cpu::Floats>(
                 "cpu.relu_backward", [](auto g, auto y) { return y <= 0 ? decltype(g)(0) : g; }),
             decompose_relu_backward)
      .done();
}

}  // namespace ops
}  // namespace tenon
