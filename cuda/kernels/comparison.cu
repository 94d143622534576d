// Comparisons: two operands of any dtype, the second of which may be a number, give bool. Any
// strides; see device/pointwise.cuh.
#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/register.h"
#include "tensor/ops/attributes.h"

namespace tenon::cuda {
namespace {

enum class Comparison { eq, ne, lt, le, gt, ge };

/// All comparisons are one kernel a dtype; which one is chosen once for all elements of a thread.
struct CompareFunction {
  Comparison op;

  template <class C, int kCount>
  __device__ void apply(C (&x)[kCount], C (&y)[kCount]) const {
    const auto each = [&](auto f) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = f(x[i], y[i]) ? C(1) : C(0);
    };
    switch (op) {
      case Comparison::eq: return each([](C a, C b) { return a == b; });
      case Comparison::ne: return each([](C a, C b) { return a != b; });
      case Comparison::lt: return each([](C a, C b) { return a < b; });
      case Comparison::le: return each([](C a, C b) { return a <= b; });
      case Comparison::gt: return each([](C a, C b) { return a > b; });
      case Comparison::ge: return each([](C a, C b) { return a >= b; });
    }
  }
};

/// `value` rounded to T, as encode_number wants it.
template <class T>
std::int64_t encode_rounded(double value) {
  if constexpr (is_16_bit_float<T>) {
    return encode_number<T>(static_cast<double>(static_cast<float>(T(static_cast<float>(value)))));
  } else {
    return encode_number<T>(value);
  }
}

template <class T>
void run_typed(const KernelArgs& args, Comparison op) {
  std::array<TensorView, 2> inputs{args.inputs[0]};
  std::array<std::int64_t, 2> numbers{};
  if (args.inputs.size() > 1 && args.inputs[1].present) {
    inputs[1] = args.inputs[1];
  } else {
    numbers[1] = encode_rounded<T>(args.attributes<BinaryAttrs>().other.value());
    // The bytes of a bool are compared, which are 0 or 1.
    if (args.inputs[0].dtype == DType::boolean) numbers[1] = numbers[1] != 0 ? 1 : 0;
  }
  run_pointwise<bool, T, T>(stream_of(args), args.name(), args.outputs[0], inputs,
                            CompareFunction{op}, numbers);
}

template <Comparison kOp>
void run_comparison(const KernelArgs& args) {
  const DType dtype = args.inputs[0].dtype;
  if (dtype == DType::boolean) return run_typed<std::uint8_t>(args, kOp);
  dispatch_all(dtype, [&]<typename T>() {
    if constexpr (!std::is_same_v<T, bool>) run_typed<T>(args, kOp);
  });
}

void register_comparison(std::string_view op, std::string_view name,
                         void (*run)(const KernelArgs&)) {
  register_kernel(op, DeviceType::cuda,
                  {.name = name, .run = run, .accepts = any_layout, .strided_output = true});
}

}  // namespace

void register_comparison_kernels() {
  register_comparison("eq", "cuda.eq", run_comparison<Comparison::eq>);
  register_comparison("ne", "cuda.ne", run_comparison<Comparison::ne>);
  register_comparison("lt", "cuda.lt", run_comparison<Comparison::lt>);
  register_comparison("le", "cuda.le", run_comparison<Comparison::le>);
  register_comparison("gt", "cuda.gt", run_comparison<Comparison::gt>);
  register_comparison("ge", "cuda.ge", run_comparison<Comparison::ge>);
}

}  // namespace tenon::cuda
