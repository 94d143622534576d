// pow: each element to the power of a number, or of another tensor's element.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor pow(const Tensor& input, double exponent) {
  static const Op& op = get_op("pow");
  return apply1(op, {input, Tensor()}, PowAttrs{exponent});
}

Tensor pow(const Tensor& input, const Tensor& exponent) {
  static const Op& op = get_op("pow");
  return apply1(op, {input, exponent}, PowAttrs{});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_pow(const InferContext& context) {
  require_floating(context, 0);
  if (!context.has(1)) return {context[0]};
  require_same_dtype(context);
  Shape shape = broadcast_shapes("pow", context[0].shape, context[1].shape);
  return {{context[0].dtype, std::move(shape), context[0].device}};
}

void run_pow(const KernelArgs& args) {
  const double exponent = args.attributes<PowAttrs>().exponent;
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    if (args.inputs.size() > 1 && args.inputs[1].present) {
      cpu::run_elementwise<C, C, C>(args.outputs[0], args.inputs.first(2),
                                    [](C x, C e) { return std::pow(x, e); });
      return;
    }
    const auto run = [&](const auto& f) {
      cpu::run_elementwise<C, C>(args.outputs[0], args.inputs.first(1), f);
    };
    const auto e = static_cast<C>(exponent);
    if (exponent == 2) {
      run([](C x) { return x * x; });
    } else if (exponent == 3) {
      run([](C x) { return x * x * x; });
    } else {
      run([e](C x) { return std::pow(x, e); });
    }
  });
}

/// grad·e·input^(e-1), and 0 for e = 0 even at input 0, where the power is inf.
Tensor pow_gradient(const Tensor& grad, const Tensor& input, double e) {
  if (e == 0) return mul(grad, 0);
  return mul(mul(grad, e), pow(input, e - 1));
}

std::vector<Tensor> vjp_pow(const VjpContext& call) {
  const Tensor grad = call.cotangent(0);
  const Tensor input = call.input(0);
  if (!call.has(1)) return {pow_gradient(grad, input, call.attributes<PowAttrs>().exponent)};
  const Tensor e = call.input(1);
  std::vector<Tensor> gradients(2);
  if (call.needs(0)) {
    const Tensor slope = mul(e, pow(input, sub(e, 1)));
    const Tensor product = masked_fill(mul(grad, slope), eq(e, 0), 0);
    gradients[0] = sum_to(product, call.input_spec(0).shape);
  }
  if (call.needs(1)) {
    // x^e·ln(x): 0 where x is 0 and e >= 0, NaN where x is negative.
    const Tensor slope = mul(pow(input, e), log(input));
    const Tensor flat = mul(eq(input, 0), ge(e, 0));
    gradients[1] = sum_to(mul(grad, masked_fill(slope, flat, 0)), call.input_spec(1).shape);
  }
  return gradients;
}

}  // namespace

Op define_pow() {
  return OpBuilder("pow")
      .doc(
          "input^exponent, elementwise, broadcast; the exponent is a tensor or, where absent, a "
          "number. NaN for a negative input and a fractional exponent.")
      .operand("input")
      .optional("exponent")
      .trait(Trait::elementwise)
      .infer(infer_pow)
      .cpu(cpu::elementwise_kernel("cpu.pow", run_pow))
      .saves_inputs({0, 1})
      .vjp(vjp_pow)
      .done();
}

}  // namespace ops
}  // namespace tenon
