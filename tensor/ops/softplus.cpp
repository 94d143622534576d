// softplus: a smooth relu, log(1 + e^(beta·x))/beta.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor softplus(const Tensor& input, double beta, double threshold) {
  static const Op& op = get_op("softplus");
  return apply1(op, {input}, SoftplusAttrs{beta, threshold});
}

namespace ops {

Tensor softplus_backward(const Tensor& grad, const Tensor& input, double beta, double threshold) {
  static const Op& op = get_op("softplus_backward");
  return apply1(op, {grad, input}, SoftplusAttrs{beta, threshold});
}

namespace {

std::vector<TensorSpec> infer_softplus(const InferContext& context) {
  const double beta = context.attributes<SoftplusAttrs>().beta;
  TENON_CHECK(beta != 0, ValueError, "[softplus] beta is 0; needed another number");
  return infer_float_like_input(context);
}

void run_softplus(const KernelArgs& args) {
  const auto& attrs = args.attributes<SoftplusAttrs>();
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    const auto f = [beta = C(attrs.beta), threshold = C(attrs.threshold)](C x) {
      const C z = beta * x;
      return cpu::select(z > threshold, x, cpu::log1p_exp(z) / beta);
    };
    cpu::run_elementwise<C, C>(args.outputs[0], args.inputs.first(1), f);
  });
}

void run_softplus_backward(const KernelArgs& args) {
  const auto& attrs = args.attributes<SoftplusAttrs>();
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    const auto f = [beta = C(attrs.beta), threshold = C(attrs.threshold)](C g, C x) {
      const C z = beta * x;
      return cpu::select(z > threshold, g, g * cpu::sigmoid(z));
    };
    cpu::run_elementwise<C, C, C>(args.outputs[0], args.inputs.first(2), f);
  });
}

/// g·sigmoid(beta·x), and g where beta·x > threshold.
std::vector<Tensor> decompose_softplus_backward(std::span<const Tensor> inputs,
                                                const Attrs& attrs) {
  const auto& [beta, threshold] = attrs.as<SoftplusAttrs>();
  const Tensor z = mul(inputs[1], beta);
  return {where(gt(z, threshold), inputs[0], mul(inputs[0], sigmoid(z)))};
}

std::vector<Tensor> vjp_softplus(const VjpContext& call) {
  const auto& [beta, threshold] = call.attributes<SoftplusAttrs>();
  return {softplus_backward(call.cotangent(0), call.input(0), beta, threshold)};
}

}  // namespace

Op define_softplus() {
  return unary_op("softplus",
                  "log(1 + e^(beta·x))/beta, elementwise; x itself where beta·x > threshold.",
                  infer_softplus, cpu::elementwise_kernel("cpu.softplus", run_softplus))
      .saves_inputs({0})
      .vjp(vjp_softplus)
      .range(ranges::nonnegative)
      .done();
}

Op define_softplus_backward() {
  return unary_gradient_op("softplus_backward", "grad times the slope of softplus at input.",
                           "input",
                           cpu::elementwise_kernel("cpu.softplus_backward", run_softplus_backward),
                           decompose_softplus_backward)
      .done();
}

}  // namespace ops
}  // namespace tenon
