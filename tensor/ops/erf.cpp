// erf: the error function.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor erf(const Tensor& input) {
  static const Op& op = get_op("erf");
  return apply1(op, {input});
}

namespace ops {

Tensor erf_backward(const Tensor& grad, const Tensor& input) {
  static const Op& op = get_op("erf_backward");
  return apply1(op, {grad, input});
}

namespace {

/// g·2/√π·e^(-x²).
std::vector<Tensor> decompose_erf_backward(std::span<const Tensor> inputs, const Attrs&) {
  const Tensor slope = mul(exp(neg(square(inputs[1]))), 1.12837916709551257390);
  return {mul(inputs[0], slope)};
}

}  // namespace

Op define_erf() {
  return unary_op("erf", "2/√π · ∫₀ˣ e^(-t²) dt, elementwise.", infer_float_like_input,
                  cpu::unary_kernel<cpu::Floats>("cpu.erf", [](auto x) { return cpu::erf(x); }))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {erf_backward(call.cotangent(0), call.input(0))};
      })
      .range(ranges::unit)
      .done();
}

Op define_erf_backward() {
  return unary_gradient_op(
             "erf_backward", "grad·2/√π·e^(-input²), the gradient of erf.", "input",
             cpu::binary_kernel<cpu::Floats>("cpu.erf_backward",
                                             [](auto g, auto x) {
                                               return g * (decltype(x)(1.12837916709551257390) *
                                                           cpu::exp(-x * x));
                                             }),
             decompose_erf_backward)
      .done();
}

}  // namespace ops
}  // namespace tenon
