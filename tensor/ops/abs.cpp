// abs: magnitude.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor abs(const Tensor& input) {
  static const Op& op = get_op("abs");
  return apply1(op, {input});
}

namespace ops {

Tensor abs_backward(const Tensor& grad, const Tensor& input) {
  static const Op& op = get_op("abs_backward");
  return apply1(op, {grad, input});
}

namespace {

/// grad where x > 0, less grad where x < 0.
std::vector<Tensor> decompose_abs_backward(std::span<const Tensor> inputs, const Attrs&) {
  const Tensor& grad = inputs[0];
  return {sub(masked_fill(grad, le(inputs[1], 0), 0), masked_fill(grad, ge(inputs[1], 0), 0))};
}

}  // namespace

Op define_abs() {
  return unary_op("abs", "|x|, elementwise; the lowest integer stays as it is.",
                  infer_numeric_like_input,
                  cpu::unary_kernel<cpu::Numbers>(
                      "cpu.abs",
                      [](auto x) {
                        if constexpr (std::is_floating_point_v<decltype(x)>)
                          return std::fabs(x);
                        else
                          return x < 0 ? cpu::wrap_sub(decltype(x)(0), x) : x;
                      }))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {abs_backward(call.cotangent(0), call.input(0))};
      })
      .range(ranges::nonnegative)
      .done();
}

Op define_abs_backward() {
  return unary_gradient_op(
             "abs_backward", "grad·sign(input), 0 where input is 0.", "input",
             cpu::binary_kernel<cpu::Floats>("cpu.abs_backward",
                                             [](auto g, auto x) {
                                               return x > 0 ? g : x < 0 ? -g : decltype(g)(0);
                                             }),
             decompose_abs_backward)
      .done();
}

}  // namespace ops
}  // namespace tenon
