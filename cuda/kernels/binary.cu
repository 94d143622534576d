// Elementwise ops of two operands, the second of which may be a number (not for pow): floats in
// float32 (float64 for float64), integers wrapping around, bool as logic. Any strides; see
// device/pointwise.cuh.
#include "cuda/device/math.cuh"
#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/register.h"
#include "tensor/ops/attributes.h"

namespace tenon::cuda {
namespace {

enum class BinaryOp { add, sub, rsub, mul, div, rdiv, maximum, minimum, pow };

template <class C>
__device__ __forceinline__ std::uint64_t bits_of(C x) {
  return static_cast<std::uint64_t>(x);
}

/// All binary ops are one kernel a dtype; the op is chosen once for all elements of a thread.
struct BinaryFunction {
  BinaryOp op;

  template <class C, int kCount>
  __device__ void apply(C (&x)[kCount], C (&y)[kCount]) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = f(x[i], y[i]);
    };
    switch (op) {
      case BinaryOp::maximum: return each([](C a, C b) { return nan_max(a, b); });
      case BinaryOp::minimum: return each([](C a, C b) { return nan_min(a, b); });
      default: break;
    }
    if constexpr (std::is_integral_v<C>) {
      switch (op) {
        case BinaryOp::add: return each([](C a, C b) { return C(bits_of(a) + bits_of(b)); });
        case BinaryOp::sub: return each([](C a, C b) { return C(bits_of(a) - bits_of(b)); });
        case BinaryOp::rsub: return each([](C a, C b) { return C(bits_of(b) - bits_of(a)); });
        default: return each([](C a, C b) { return C(bits_of(a) * bits_of(b)); });
      }
    } else {
      switch (op) {
        case BinaryOp::add: return each([](C a, C b) { return a + b; });
        case BinaryOp::sub: return each([](C a, C b) { return a - b; });
        case BinaryOp::rsub: return each([](C a, C b) { return b - a; });
        case BinaryOp::rdiv: return each([](C a, C b) { return b / a; });
        case BinaryOp::mul: return each([](C a, C b) { return a * b; });
        case BinaryOp::pow: return each([](C a, C b) { return pow_of(a, b); });
        default: return each([](C a, C b) { return a / b; });
      }
    }
  }
};

bool has_two_tensors(const KernelArgs& args) {
  return args.inputs.size() > 1 && args.inputs[1].present;
}

template <class T>
void run_typed(const KernelArgs& args, BinaryOp op) {
  std::array<TensorView, 2> inputs{args.inputs[0]};
  std::array<std::int64_t, 2> numbers{};
  if (has_two_tensors(args)) {
    inputs[1] = args.inputs[1];
  } else {
    const Number other = args.attributes<BinaryAttrs>().other.number();
    numbers[1] = encode_number(other.to<compute_type<T>>());
  }
  run_pointwise<T, T, T>(stream_of(args), args.name(), args.outputs[0], inputs, BinaryFunction{op},
                         numbers);
}

void run_on_floats(const KernelArgs& args, BinaryOp op) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() { run_typed<T>(args, op); });
}

template <BinaryOp kOp>
void run_float_op(const KernelArgs& args) {
  run_on_floats(args, kOp);
}

template <BinaryOp kOp>
void run_numeric_op(const KernelArgs& args) {
  switch (args.outputs[0].dtype) {
    case DType::int64: return run_typed<std::int64_t>(args, kOp);
    case DType::int32: return run_typed<std::int32_t>(args, kOp);
    case DType::uint8: return run_typed<std::uint8_t>(args, kOp);
    case DType::boolean: {
      // Of bytes that are 0 or 1, the sum is the larger and the product the smaller one.
      const bool is_or = kOp == BinaryOp::add || kOp == BinaryOp::maximum;
      return run_typed<std::uint8_t>(args, is_or ? BinaryOp::maximum : BinaryOp::minimum);
    }
    default: run_on_floats(args, kOp);
  }
}

void register_binary(std::string_view op, std::string_view name, void (*run)(const KernelArgs&)) {
  register_kernel(op, DeviceType::cuda,
                  {.name = name, .run = run, .accepts = any_layout, .strided_output = true});
}

}  // namespace

void register_binary_kernels() {
  register_binary("add", "cuda.add", run_numeric_op<BinaryOp::add>);
  register_binary("sub", "cuda.sub", run_numeric_op<BinaryOp::sub>);
  register_binary("rsub", "cuda.rsub", run_numeric_op<BinaryOp::rsub>);
  register_binary("mul", "cuda.mul", run_numeric_op<BinaryOp::mul>);
  register_binary("div", "cuda.div", run_float_op<BinaryOp::div>);
  register_binary("rdiv", "cuda.rdiv", run_float_op<BinaryOp::rdiv>);
  register_binary("maximum", "cuda.maximum", run_numeric_op<BinaryOp::maximum>);
  register_binary("minimum", "cuda.minimum", run_numeric_op<BinaryOp::minimum>);
  register_kernel("pow", DeviceType::cuda,
                  {.name = "cuda.pow_tensor",
                   .run = run_float_op<BinaryOp::pow>,
                   .supports = has_two_tensors,
                   .accepts = any_layout,
                   .strided_output = true});
}

}  // namespace tenon::cuda
