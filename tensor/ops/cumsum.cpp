// cumsum: running sums along an axis, from its start or, for the gradient, from its end.
#include <algorithm>
#include <vector>

#include "tensor/cpu/elementwise.h"
#include "tensor/ops/indexing_attributes.h"
#include "tensor/parallel.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

Tensor running_sum(const Tensor& input, std::int64_t dim, bool reverse) {
  static const Op& op = get_op("cumsum");
  return apply1(op, {input}, CumsumAttrs{dim, reverse});
}

}  // namespace

Tensor cumsum(const Tensor& input, std::int64_t dim) {
  return running_sum(input, ops::axis_of("cumsum", input, dim), /*reverse=*/false);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_cumsum(const InferContext& context) {
  const TensorSpec& input = context[0];
  normalize_axis("cumsum", context.attributes<CumsumAttrs>().dim, input.shape.rank());
  return {{is_floating(input.dtype) ? input.dtype : DType::int64, input.shape, input.device}};
}

std::vector<Tensor> vjp_cumsum(const VjpContext& call) {
  const auto& attrs = call.attributes<CumsumAttrs>();
  // Element i is in the sums from i on: their gradients are summed from the other end.
  return {running_sum(call.cotangent(0), attrs.dim, !attrs.reverse)};
}

/// Columns that are summed side by side.
constexpr std::int64_t kColumns = 256;

/// Sums are kept in double (int64 for integers): over a long axis a running float would lose digits.
template <class T>
using RunningSum = std::conditional_t<std::is_integral_v<T>, std::int64_t, double>;

/// Running sums of `width` neighbouring columns; `step` elements lead to the next row.
template <class T, class Out>
void sum_columns(const T* source, Out* target, std::int64_t length, std::int64_t step,
                 std::int64_t width) {
  RunningSum<T> sums[kColumns] = {};
  for (std::int64_t i = 0; i < length; ++i, source += step, target += step) {
    for (std::int64_t j = 0; j < width; ++j) {
      sums[j] = cpu::wrap_add(sums[j],
                              static_cast<RunningSum<T>>(static_cast<compute_type<T>>(source[j])));
      target[j] = cpu::convert<Out>(sums[j]);
    }
  }
}

/// One column, whose sum stays in a register.
template <class T, class Out>
void sum_line(const T* source, Out* target, std::int64_t length, std::int64_t step) {
  RunningSum<T> sum = 0;
  for (std::int64_t i = 0; i < length; ++i) {
    sum = cpu::wrap_add(sum,
                        static_cast<RunningSum<T>>(static_cast<compute_type<T>>(source[i * step])));
    target[i * step] = cpu::convert<Out>(sum);
  }
}

void run_cumsum(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const auto& attrs = args.attributes<CumsumAttrs>();
  if (input.numel() == 0) return;
  const int rank = input.rank();
  const int axis = static_cast<int>(attrs.dim < 0 ? attrs.dim + rank : attrs.dim);
  const std::int64_t length = rank == 0 ? 1 : input.sizes[axis];
  std::int64_t inner = 1;
  for (int i = axis + 1; i < rank; ++i) inner *= input.sizes[i];
  const std::int64_t tiles = (inner + kColumns - 1) / kColumns;
  const std::int64_t first = attrs.reverse ? (length - 1) * inner : 0;
  const std::int64_t step = attrs.reverse ? -inner : inner;
  dispatch_computed(input.dtype, [&]<class T>() {
    using Out = std::conditional_t<std::is_integral_v<T>, std::int64_t, T>;
    const std::int64_t tasks = input.numel() / (length * inner) * tiles;
    const std::int64_t grain =
        std::max<std::int64_t>(1, (1 << 15) / (length * std::min(inner, kColumns)));
    parallel_ranges(tasks, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t column = task % tiles * kColumns;
        const std::int64_t at = task / tiles * length * inner + first + column;
        const T* source = input.as<T>() + at;
        Out* target = args.outputs[0].as<Out>() + at;
        if (inner == 1) {
          sum_line(source, target, length, step);
        } else {
          sum_columns(source, target, length, step, std::min(kColumns, inner - column));
        }
      }
    });
  });
}

}  // namespace

Op define_cumsum() {
  return OpBuilder("cumsum")
      .doc(
          "Σ of the elements up to each one along axis dim, itself included; with reverse from "
          "each "
          "one on. Integers and bool give int64.")
      .operand("input")
      .infer(infer_cumsum)
      .vjp(vjp_cumsum)
      .cpu({"cpu.cumsum", run_cumsum, nullptr, nullptr, false})
      .range(ranges::same_sign)
      .done();
}

}  // namespace ops
}  // namespace tenon
