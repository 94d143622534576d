// What the comparisons of tensor/ops share: two operands of one dtype, or one and a number, give bool.
#pragma once

#include <string>

#include "tensor/calls/integer_comparison.h"
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon::ops {

template <Comparison kOp>
struct Compare {
  template <class C>
  bool operator()(C x, C y) const {
    if constexpr (kOp == Comparison::eq) return x == y;
    if constexpr (kOp == Comparison::ne) return x != y;
    if constexpr (kOp == Comparison::lt) return x < y;
    if constexpr (kOp == Comparison::le) return x <= y;
    if constexpr (kOp == Comparison::gt) return x > y;
    if constexpr (kOp == Comparison::ge) return x >= y;
  }
};

/// Every element of a bool tensor.
inline void fill(const TensorView& output, bool value) {
  const TensorView inputs[] = {cpu::repeated(value)};
  cpu::run_elementwise<bool, bool>(output, inputs, [](bool x) { return x; });
}

/// The comparison on the compute type. With integers a number is compared exactly; to floats it is
/// rounded first, so that 0.1 equals the float16 nearest to 0.1.
template <Comparison kOp>
Kernel comparison_kernel(std::string_view name) {
  return cpu::elementwise_kernel(name, [](const KernelArgs& args) {
    const DType dtype = args.inputs[0].dtype;
    cpu::AllDTypes::dispatch(dtype, [&]<class C>() {
      if (args.inputs[1].present) {
        return cpu::run_elementwise<bool, C, C>(args.outputs[0], args.inputs.first(2),
                                                Compare<kOp>{});
      }
      Number other = args.attributes<BinaryAttrs>().other.number();
      if constexpr (std::is_integral_v<C>) {
        const IntegerComparison exact = compare_integers(kOp, other, dtype);
        if (exact.always) return fill(args.outputs[0], *exact.always);
        other = exact.bound;
      }
      C value{};
      load_number(other, dtype, &value);
      const TensorView inputs[] = {args.inputs[0], cpu::repeated(value)};
      cpu::run_elementwise<bool, C, C>(args.outputs[0], inputs, Compare<kOp>{});
    });
  });
}

/// An op of `input` and `other`, which is a tensor or, where absent, the number in BinaryAttrs.
inline OpBuilder comparison_op(std::string_view name, std::string_view doc, const Kernel& cpu) {
  OpBuilder builder = binary_op(name, doc, infer_comparison, cpu);
  builder.trait(Trait::storage_dtypes).not_differentiable();
  return builder;
}

}  // namespace tenon::ops
