// Gradients of unary ops: the cotangent times the op's slope at its input or, as tensor/rules/gradients.h
// says, from its output. float32 (float64 for float64), any strides; see device/pointwise.cuh.
#include "cuda/device/gelu.cuh"
#include "cuda/device/math.cuh"
#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/register.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

enum class UnaryGradient {
  abs,
  erf,
  gelu,
  gelu_tanh,
  relu,     // from the output
  sigmoid,  // from the output
  silu,
  softplus,
  tanh  // from the output
};

template <class C>
__device__ __forceinline__ C silu_slope(C x) {
  const C s = sigmoid_of(x);
  return s * (C(1) + x * (C(1) - s));
}

/// All gradients are one kernel a dtype; which one is chosen once for all elements of a thread.
struct UnaryGradientFunction {
  UnaryGradient op;
  double beta = 1;  // of softplus
  double threshold = 0;

  /// g: cotangents, replaced by the gradients; x: inputs or outputs of the op.
  template <class C, int kCount>
  __device__ void apply(C (&g)[kCount], C (&x)[kCount]) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) g[i] = f(g[i], x[i]);
    };
    switch (op) {
      case UnaryGradient::abs:
        return each([](C d, C v) { return v > C(0) ? d : v < C(0) ? -d : C(0); });
      case UnaryGradient::erf:
        return each([](C d, C v) { return d * (C(1.12837916709551257390) * exp_of(-v * v)); });
      case UnaryGradient::gelu: return each([](C d, C v) { return d * gelu_slope(v); });
      case UnaryGradient::gelu_tanh: return each([](C d, C v) { return d * gelu_tanh_slope(v); });
      case UnaryGradient::relu: return each([](C d, C y) { return y <= C(0) ? C(0) : d; });
      case UnaryGradient::sigmoid: return each([](C d, C y) { return d * y * (C(1) - y); });
      case UnaryGradient::silu: return each([](C d, C v) { return d * silu_slope(v); });
      case UnaryGradient::softplus:
        return each([b = C(beta), t = C(threshold)](C d, C v) {
          return b * v > t ? d : d * sigmoid_of(b * v);
        });
      case UnaryGradient::tanh: return each([](C d, C y) { return d * (C(1) - y * y); });
    }
  }
};

void run(const KernelArgs& args, const UnaryGradientFunction& f) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    run_pointwise<T, T, T>(stream_of(args), args.name(), args.outputs[0],
                           {args.inputs[0], args.inputs[1]}, f);
  });
}

template <UnaryGradient kOp>
void run_gradient(const KernelArgs& args) {
  run(args, {kOp});
}

void run_gelu_backward(const KernelArgs& args) {
  const bool uses_tanh = args.attributes<GeluAttrs>().approximate == Approximate::tanh;
  run(args, {uses_tanh ? UnaryGradient::gelu_tanh : UnaryGradient::gelu});
}

void run_softplus_backward(const KernelArgs& args) {
  const auto& attrs = args.attributes<SoftplusAttrs>();
  run(args, {UnaryGradient::softplus, attrs.beta, attrs.threshold});
}

void register_gradient(std::string_view op, std::string_view name, void (*run)(const KernelArgs&)) {
  register_kernel(op, DeviceType::cuda,
                  {.name = name, .run = run, .accepts = any_layout, .strided_output = true});
}

}  // namespace

void register_unary_backward_kernels() {
  register_gradient("abs_backward", "cuda.abs_backward", run_gradient<UnaryGradient::abs>);
  register_gradient("erf_backward", "cuda.erf_backward", run_gradient<UnaryGradient::erf>);
  register_gradient("gelu_backward", "cuda.gelu_backward", run_gelu_backward);
  register_gradient("relu_backward", "cuda.relu_backward", run_gradient<UnaryGradient::relu>);
  register_gradient("sigmoid_backward", "cuda.sigmoid_backward",
                    run_gradient<UnaryGradient::sigmoid>);
  register_gradient("silu_backward", "cuda.silu_backward", run_gradient<UnaryGradient::silu>);
  register_gradient("softplus_backward", "cuda.softplus_backward", run_softplus_backward);
  register_gradient("tanh_backward", "cuda.tanh_backward", run_gradient<UnaryGradient::tanh>);
}

}  // namespace tenon::cuda
