// Comparisons: two operands of any dtype, the second of which may be a number, give bool. Any
// strides; see device/pointwise.cuh.
#include <limits>

#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/register.h"
#include "tensor/calls/integer_comparison.h"
#include "tensor/ops/attributes.h"

namespace tenon::cuda {
namespace {

using ops::Comparison;

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

/// The number rounded to T. Integers are compared with it exactly: what is true of all or of none of
/// them is put as a comparison with the smallest.
template <class T>
std::int64_t comparand(const KernelArgs& args, Comparison& op) {
  const Number number = args.attributes<BinaryAttrs>().other.number();
  if constexpr (std::is_integral_v<T>) {
    const auto exact = ops::compare_integers(op, number, args.inputs[0].dtype);
    if (!exact.always) return exact.bound;
    op = *exact.always ? Comparison::ge : Comparison::lt;
    return std::numeric_limits<T>::lowest();
  } else {
    return encode_number(static_cast<compute_type<T>>(number.to<T>()));
  }
}

template <class T>
void run_typed(const KernelArgs& args, Comparison op) {
  std::array<TensorView, 2> inputs{args.inputs[0]};
  std::array<std::int64_t, 2> numbers{};
  if (args.inputs.size() > 1 && args.inputs[1].present) {
    inputs[1] = args.inputs[1];
  } else {
    numbers[1] = comparand<T>(args, op);
  }
  run_pointwise<bool, T, T>(stream_of(args), args.name(), args.outputs[0], inputs,
                            CompareFunction{op}, numbers);
}

template <Comparison kOp>
void run_comparison(const KernelArgs& args) {
  const DType dtype = args.inputs[0].dtype;
  // The bytes of a bool, which are 0 or 1.
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
