#include "cuda/kernels/reduce_plan.h"

#include <algorithm>
#include <bit>

#include "cuda/launch.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

/// Enough threads to fill any current GPU.
constexpr std::int64_t kWantedThreads = std::int64_t{1} << 18;
/// By columns: six blocks for each multiprocessor of an H200, where more and fewer were slower.
constexpr std::int64_t kWantedColumnThreads = 132 * 6 * kReduceThreads;
constexpr std::int64_t kMaxSplits = 1024;
/// Fewer inputs than this a thread are not worth a second pass.
constexpr std::int64_t kInputsPerThread = 32;
/// Splits start at multiples of this, so that 16-byte accesses stay aligned.
constexpr std::int64_t kSplitAlignment = 16;
/// With fewer neighbouring outputs, threads across outputs would mostly idle.
constexpr std::int64_t kFewestColumns = 8;
/// By columns, fewer rows than this leave nothing to share among the threads of a block.
constexpr std::int64_t kFewestSharedRows = 64;
constexpr std::int64_t kRowsPerThread = 8;
constexpr std::int64_t kVectorBytes = 16;

/// Neighbouring outputs that start at multiples of what 16 bytes hold, in every row; by columns integers
/// are read one by one.
int columns_of_thread(const ReducePlan& plan, DType dtype) {
  if (!is_floating(dtype)) return 1;
  const auto length = kVectorBytes / static_cast<std::int64_t>(size_of(dtype));
  const auto divides = [&](std::int64_t value) { return value % length == 0; };
  const Extents& kept = plan.kept.strides[0];
  const bool fits = divides(plan.kept.sizes.back()) &&
                    std::all_of(kept.begin(), kept.end() - 1, divides) &&
                    std::ranges::all_of(plan.reduced.strides[0], divides);
  return fits ? static_cast<int>(length) : 1;
}

void plan_splits(ReducePlan& plan) {
  const std::int64_t threads_of_output =
      plan.by_columns ? kReduceThreads / plan.column_threads : plan.lanes;
  const std::int64_t threads =
      std::max<std::int64_t>(1, ceil_div(plan.outputs, plan.columns)) * threads_of_output;
  const std::int64_t inputs_of_thread =
      threads_of_output > 1 && plan.by_columns ? kRowsPerThread : kInputsPerThread;
  const std::int64_t most =
      std::min(kMaxSplits, plan.count / (threads_of_output * inputs_of_thread));
  std::int64_t splits =
      std::clamp<std::int64_t>((plan.by_columns ? kWantedColumnThreads : kWantedThreads) / threads,
                               1, std::max<std::int64_t>(1, most));
  plan.split_size = plan.count;
  if (splits > 1) {
    plan.split_size = ceil_div(ceil_div(plan.count, splits), kSplitAlignment) * kSplitAlignment;
    splits = ceil_div(plan.count, plan.split_size);
  }
  plan.splits = splits;
}

}  // namespace

void require_elements(const KernelArgs& args) {
  TENON_CHECK(args.outputs[0].numel() == 0 || args.inputs[0].numel() > 0, ShapeError,
              "[{}] an empty axis is reduced; needed at least one element", args.name());
}

ReducePlan plan_reduction(const TensorView& input, const std::vector<std::int64_t>& axes) {
  Extents kept_sizes, reduced_sizes;
  Extents kept_strides[1], reduced_strides[1];
  for (int axis = 0; axis < input.rank(); ++axis) {
    const bool is_reduced = axes.empty() || std::ranges::find(axes, axis) != axes.end();
    (is_reduced ? reduced_sizes : kept_sizes).push_back(input.sizes[axis]);
    (is_reduced ? reduced_strides : kept_strides)[0].push_back(input.strides[axis]);
  }
  ReducePlan plan;
  plan.outputs = kept_sizes.product();
  plan.count = reduced_sizes.product();
  plan.kept = collapse_axes(kept_sizes, kept_strides, /*sort=*/false);
  // The order of summation is free to choose: along memory.
  plan.reduced = collapse_axes(reduced_sizes, reduced_strides, /*sort=*/true);
  const std::int64_t kept_inner = plan.kept.strides[0].back();
  const std::int64_t reduced_inner = plan.reduced.strides[0].back();
  plan.by_columns =
      kept_inner == 1 && plan.kept.sizes.back() >= kFewestColumns && reduced_inner != 1;
  if (plan.by_columns) {
    plan.columns = columns_of_thread(plan, input.dtype);
    const bool shares = plan.columns == 1 || plan.count >= kFewestSharedRows;
    const auto threads = static_cast<std::uint64_t>(ceil_div(plan.outputs, plan.columns));
    plan.column_threads = static_cast<int>(
        std::bit_ceil(std::min<std::uint64_t>(threads, shares ? kReduceColumns : kReduceThreads)));
  } else {
    const auto wanted = static_cast<std::uint64_t>(std::max<std::int64_t>(1, plan.count / 8));
    plan.lanes = wanted > 32 * 8
                     ? kReduceThreads
                     : static_cast<int>(std::bit_ceil(std::min<std::uint64_t>(wanted, 32)));
  }
  plan_splits(plan);
  const std::int64_t outputs_of_block = plan.by_columns
                                            ? std::int64_t{plan.column_threads} * plan.columns
                                            : kReduceThreads / plan.lanes;
  plan.blocks = plan.by_columns ? ceil_div(plan.outputs, outputs_of_block) * plan.splits
                                : ceil_div(plan.outputs * plan.splits, outputs_of_block);
  return plan;
}

}  // namespace tenon::cuda
