// Elementwise ops of one operand: y = f(x), computed in float32 (float64 for float64) or in the
// integer type, any strides, by the pointwise kernel (device/pointwise.cuh).
#include "cuda/device/gelu.cuh"
#include "cuda/device/math.cuh"
#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/register.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

enum class UnaryOp {
  neg,
  abs,
  square,
  relu,  // integers too
  exp,
  log,
  sqrt,
  rsqrt,
  reciprocal,
  sin,
  cos,
  tanh,
  sigmoid,
  erf,
  silu,
  gelu,
  gelu_tanh,
  softplus,
  pow
};

/// Squares and cubes by multiplication, as the CPU computes them.
template <class C>
__device__ __forceinline__ C power(C x, double exponent) {
  if (exponent == 2) return x * x;
  if (exponent == 3) return x * x * x;
  return pow_of(x, static_cast<C>(exponent));
}

template <class C>
__device__ __forceinline__ C negated(C x) {
  if constexpr (std::is_integral_v<C>)
    return static_cast<C>(0 - static_cast<std::uint64_t>(x));
  else
    return -x;
}

template <class C>
__device__ __forceinline__ C magnitude(C x) {
  if constexpr (std::is_unsigned_v<C>)
    return x;
  else if constexpr (std::is_integral_v<C>)
    return x < 0 ? negated(x) : x;
  else
    return absolute(x);
}

template <class C>
__device__ __forceinline__ C squared(C x) {
  if constexpr (std::is_integral_v<C>) {
    return static_cast<C>(static_cast<std::uint64_t>(x) * static_cast<std::uint64_t>(x));
  } else {
    return x * x;
  }
}

/// All unary ops are one kernel a dtype: the op is chosen at run time, once for all elements of a
/// thread, which costs nothing beside the memory traffic and saves minutes of compilation.
struct UnaryFunction {
  UnaryOp op;
  double parameter = 0;  // the exponent of pow, beta of softplus
  double threshold = 0;

  template <class C, int kCount>
  __device__ void apply(C (&x)[kCount]) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = f(x[i]);
    };
    switch (op) {
      case UnaryOp::neg: return each([](C v) { return negated(v); });
      case UnaryOp::abs: return each([](C v) { return magnitude(v); });
      case UnaryOp::square: return each([](C v) { return squared(v); });
      case UnaryOp::relu: return each([](C v) { return v > C(0) || v != v ? v : C(0); });
      default: break;
    }
    if constexpr (std::is_floating_point_v<C>) {
      switch (op) {
        case UnaryOp::exp: return each([](C v) { return exp_of(v); });
        case UnaryOp::log: return each([](C v) { return log_of(v); });
        case UnaryOp::sqrt: return each([](C v) { return sqrt_of(v); });
        case UnaryOp::rsqrt: return each([](C v) { return rsqrt_of(v); });
        case UnaryOp::reciprocal: return each([](C v) { return C(1) / v; });
        case UnaryOp::sin: return each([](C v) { return sin_of(v); });
        case UnaryOp::cos: return each([](C v) { return cos_of(v); });
        case UnaryOp::tanh: return each([](C v) { return tanh_of(v); });
        case UnaryOp::sigmoid: return each([](C v) { return sigmoid_of(v); });
        case UnaryOp::erf: return each([](C v) { return erf_of(v); });
        case UnaryOp::silu: return each([](C v) { return v * sigmoid_of(v); });
        case UnaryOp::gelu: return each([](C v) { return gelu(v); });
        case UnaryOp::gelu_tanh: return each([](C v) { return gelu_tanh(v); });
        case UnaryOp::pow: return each([e = parameter](C v) { return power(v, e); });
        case UnaryOp::softplus:
          return each([b = C(parameter), t = C(threshold)](C v) {
            const C z = b * v;
            return z > t ? v : ((z > C(0) ? z : C(0)) + log1p_of(exp_of(-absolute(z)))) / b;
          });
        default: break;
      }
    }
  }
};

struct SquareOfBool {
  __device__ std::int64_t operator()(bool x) const { return x ? 1 : 0; }
};

void run_on_floats(const KernelArgs& args, const UnaryFunction& f) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    run_pointwise<T, T>(stream_of(args), args.name(), args.outputs[0], {args.inputs[0]}, f);
  });
}

template <UnaryOp kOp>
void run_float_op(const KernelArgs& args) {
  run_on_floats(args, {kOp});
}

void run_on_numbers(const KernelArgs& args, const UnaryFunction& f) {
  const auto run = [&]<typename T>() {
    run_pointwise<T, T>(stream_of(args), args.name(), args.outputs[0], {args.inputs[0]}, f);
  };
  switch (args.outputs[0].dtype) {
    case DType::int64: return run.template operator()<std::int64_t>();
    case DType::int32: return run.template operator()<std::int32_t>();
    case DType::uint8: return run.template operator()<std::uint8_t>();
    default: run_on_floats(args, f);
  }
}

template <UnaryOp kOp>
void run_numeric_op(const KernelArgs& args) {
  run_on_numbers(args, {kOp});
}

void run_square(const KernelArgs& args) {
  if (args.inputs[0].dtype != DType::boolean) return run_on_numbers(args, {UnaryOp::square});
  run_pointwise<std::int64_t, bool>(stream_of(args), "square", args.outputs[0], {args.inputs[0]},
                                    SquareOfBool{});
}

void run_gelu(const KernelArgs& args) {
  const bool uses_tanh = args.attributes<GeluAttrs>().approximate == Approximate::tanh;
  run_on_floats(args, {uses_tanh ? UnaryOp::gelu_tanh : UnaryOp::gelu});
}

void run_pow(const KernelArgs& args) {
  run_on_floats(args, {UnaryOp::pow, args.attributes<PowAttrs>().exponent});
}

/// An exponent that is a tensor is for binary.cu.
bool has_no_exponent(const KernelArgs& args) {
  return args.inputs.size() < 2 || !args.inputs[1].present;
}

void run_softplus(const KernelArgs& args) {
  const auto& attrs = args.attributes<SoftplusAttrs>();
  run_on_floats(args, {UnaryOp::softplus, attrs.beta, attrs.threshold});
}

void register_unary(std::string_view op, std::string_view name, void (*run)(const KernelArgs&)) {
  register_kernel(op, DeviceType::cuda,
                  {.name = name, .run = run, .accepts = any_layout, .strided_output = true});
}

}  // namespace

void register_unary_kernels() {
  register_unary("neg", "cuda.neg", run_numeric_op<UnaryOp::neg>);
  register_unary("abs", "cuda.abs", run_numeric_op<UnaryOp::abs>);
  register_unary("square", "cuda.square", run_square);
  register_unary("relu", "cuda.relu", run_numeric_op<UnaryOp::relu>);
  register_unary("exp", "cuda.exp", run_float_op<UnaryOp::exp>);
  register_unary("log", "cuda.log", run_float_op<UnaryOp::log>);
  register_unary("sqrt", "cuda.sqrt", run_float_op<UnaryOp::sqrt>);
  register_unary("rsqrt", "cuda.rsqrt", run_float_op<UnaryOp::rsqrt>);
  register_unary("reciprocal", "cuda.reciprocal", run_float_op<UnaryOp::reciprocal>);
  register_unary("sin", "cuda.sin", run_float_op<UnaryOp::sin>);
  register_unary("cos", "cuda.cos", run_float_op<UnaryOp::cos>);
  register_unary("tanh", "cuda.tanh", run_float_op<UnaryOp::tanh>);
  register_unary("sigmoid", "cuda.sigmoid", run_float_op<UnaryOp::sigmoid>);
  register_unary("erf", "cuda.erf", run_float_op<UnaryOp::erf>);
  register_unary("silu", "cuda.silu", run_float_op<UnaryOp::silu>);
  register_unary("gelu", "cuda.gelu", run_gelu);
  register_unary("softplus", "cuda.softplus", run_softplus);
  register_kernel("pow", DeviceType::cuda,
                  {.name = "cuda.pow",
                   .run = run_pow,
                   .supports = has_no_exponent,
                   .accepts = any_layout,
                   .strided_output = true});
}

}  // namespace tenon::cuda
