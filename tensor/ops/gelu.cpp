// gelu: the Gaussian error linear unit (Hendrycks and Gimpel, 2016), exact or with tanh.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/detail/check.h"
#include "tensor/detail/pointwise.h"

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
namespace {

/// 0.5·(1 + tanh(u)) = 1/(1 + e^(-2u)), which keeps its digits where tanh(u) is close to -1.
template <class C>
C gelu_tanh(C x) {
  const C u = C(0.79788456080286535588) * (x + C(0.044715) * x * x * x);
  return x * cpu::sigmoid(2 * u);
}

void run_gelu(const KernelArgs& args) {
  const Approximate approximate = args.attributes<GeluAttrs>().approximate;
  dispatch_float(args.outputs[0].dtype, [&]<class T>() {
    const auto run = [&](const auto& f) {
      cpu::run_elementwise<T, T>(args.outputs[0], args.inputs.first(1), f);
    };
    if (approximate == Approximate::tanh) {
      run([](auto x) { return gelu_tanh(x); });
    } else {
      run([](auto x) { return x * cpu::normal_cdf(x); });
    }
  });
}

}  // namespace

Op define_gelu() {
  return unary_op(
      "gelu",
      "x·Φ(x), elementwise, or 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))) for approximate=tanh.",
      infer_float_like_input, cpu::elementwise_kernel("cpu.gelu", run_gelu));
}

}  // namespace ops
}  // namespace tenon
