// gelu: the Gaussian error linear unit (Hendrycks and Gimpel, 2016), exact or with tanh.
#include "tensor/cpu/gelu.h"
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor gelu(const Tensor& input, Approximate approximate) {
  static const Op& op = get_op("gelu");
  return apply1(op, {input}, GeluAttrs{approximate});
}

std::string_view enum_name(Approximate approximate) {
  return approximate == Approximate::tanh ? "tanh" : "none";
}

Approximate parse_enum(Approximate, std::string_view text) {
  TENON_CHECK(text == "none" || text == "tanh", ValueError,
              "[gelu] approximate '{}'; needed 'none' or 'tanh'", text.substr(0, 80));
  return text == "tanh" ? Approximate::tanh : Approximate::none;
}

namespace ops {

Tensor gelu_backward(const Tensor& grad, const Tensor& input, Approximate approximate) {
  static const Op& op = get_op("gelu_backward");
  return apply1(op, {grad, input}, GeluAttrs{approximate});
}

namespace {

void run_gelu(const KernelArgs& args) {
  const Approximate approximate = args.attributes<GeluAttrs>().approximate;
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    const auto run = [&](const auto& f) {
      cpu::run_elementwise<C, C>(args.outputs[0], args.inputs.first(1), f);
    };
    if (approximate == Approximate::tanh) {
      run([](auto x) { return cpu::gelu_tanh(x); });
    } else {
      run([](auto x) { return cpu::gelu(x); });
    }
  });
}

void run_gelu_backward(const KernelArgs& args) {
  const Approximate approximate = args.attributes<GeluAttrs>().approximate;
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    const auto run = [&](const auto& f) {
      cpu::run_elementwise<C, C, C>(args.outputs[0], args.inputs.first(2), f);
    };
    if (approximate == Approximate::tanh) {
      run([](auto g, auto x) { return g * cpu::gelu_tanh_slope(x); });
    } else {
      run([](auto g, auto x) { return g * cpu::gelu_slope(x); });
    }
  });
}

constexpr double kDensityAtZero = 0.39894228040143267794;  // 1/√(2π)

/// The two slopes in ops.
std::vector<Tensor> decompose_gelu_backward(std::span<const Tensor> inputs, const Attrs& attrs) {
  const Tensor& grad = inputs[0];
  if (attrs.as<GeluAttrs>().approximate == Approximate::none) {
    const Tensor& x = inputs[1];
    const Tensor cdf = mul(add(erf(mul(x, std::sqrt(0.5))), 1), 0.5);
    const Tensor density = mul(exp(mul(square(x), -0.5)), kDensityAtZero);
    return {mul(grad, add(cdf, mul(x, density)))};
  }
  // See cpu::gelu_tanh_slope; 16-bit floats overflow much earlier here, where each op rounds to
  // them.
  constexpr double kReach = cpu::kGeluTanhReach;
  const Tensor below = masked_fill(inputs[1], gt(inputs[1], kReach), kReach);
  const Tensor x = masked_fill(below, lt(below, -kReach), -kReach);
  const Tensor x2 = square(x);
  const Tensor s = sigmoid(mul(mul(x, add(mul(x2, cpu::kGeluCubic), 1)), 2 * cpu::kRootTwoOverPi));
  const Tensor du = mul(add(mul(x2, 3 * cpu::kGeluCubic), 1), cpu::kRootTwoOverPi);
  const Tensor bend = mul(mul(mul(x, 2), mul(s, add(neg(s), 1))), du);
  return {mul(grad, add(s, bend))};
}

}  // namespace

Op define_gelu() {
  return unary_op(
             "gelu",
             "x·Φ(x), elementwise, or 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))) for approximate=tanh.",
             infer_float_like_input, cpu::elementwise_kernel("cpu.gelu", run_gelu))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {gelu_backward(call.cotangent(0), call.input(0),
                              call.attributes<GeluAttrs>().approximate)};
      })
      .done();
}

Op define_gelu_backward() {
  return unary_gradient_op("gelu_backward",
                           "grad times the slope of gelu at input, for the same approximate.",
                           "input", cpu::elementwise_kernel("cpu.gelu_backward", run_gelu_backward),
                           decompose_gelu_backward)
      .done();
}

}  // namespace ops
}  // namespace tenon
