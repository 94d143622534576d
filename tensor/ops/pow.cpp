// pow: each element to the power of a number.
#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon {

Tensor pow(const Tensor& input, double exponent) {
  static const Op& op = get_op("pow");
  return apply1(op, {input}, PowAttrs{exponent});
}

namespace ops {
namespace {

void run_pow(const KernelArgs& args) {
  const double exponent = args.attributes<PowAttrs>().exponent;
  dispatch_float(args.outputs[0].dtype, [&]<class T>() {
    const auto run = [&](const auto& f) {
      cpu::run_elementwise<T, T>(args.outputs[0], args.inputs.first(1), f);
    };
    const auto e = static_cast<compute_type<T>>(exponent);
    if (exponent == 2) {
      run([](auto x) { return x * x; });
    } else if (exponent == 3) {
      run([](auto x) { return x * x * x; });
    } else {
      run([e](auto x) { return std::pow(x, e); });
    }
  });
}

}  // namespace

Op define_pow() {
  return unary_op("pow", "x^exponent, elementwise; NaN for a negative x and a fractional exponent.",
                  infer_float_like_input, cpu::elementwise_kernel("cpu.pow", run_pow));
}

}  // namespace ops
}  // namespace tenon
