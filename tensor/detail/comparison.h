// What the comparisons of tensor/ops share: two operands of one dtype, or one and a number, give bool.
#pragma once

#include <string>

#include "tensor/cpu/elementwise.h"
#include "tensor/detail/pointwise.h"

namespace tenon::ops {

/// infer_binary's rules; the output is bool.
std::vector<TensorSpec> infer_comparison(const InferContext& context);

/// `value` rounded to `dtype`, in its compute type.
void load_number(double value, DType dtype, void* target);

/// f: (x, y) -> bool on the compute type. A number is rounded to the operand's dtype first, so that
/// 0.1 equals the float16 nearest to 0.1.
template <class F>
Kernel comparison_kernel(std::string_view name, F) {
  return cpu::elementwise_kernel(name, [](const KernelArgs& args) {
    cpu::AllDTypes::dispatch(args.inputs[0].dtype, [&]<class C>() {
      if (args.inputs[1].present) {
        return cpu::run_elementwise<bool, C, C>(args.outputs[0], args.inputs.first(2), F{});
      }
      C other{};
      load_number(args.attributes<BinaryAttrs>().other.value(), args.inputs[0].dtype, &other);
      const TensorView inputs[] = {args.inputs[0], cpu::repeated(other)};
      cpu::run_elementwise<bool, C, C>(args.outputs[0], inputs, F{});
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
