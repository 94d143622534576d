#include "cuda/kernels/row_plan.h"

#include <algorithm>
#include <bit>

#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kWarpLanes = 32;
constexpr int kSmallBlock = 128;

}  // namespace

RowPlan plan_rows(std::int64_t rows, std::int64_t cols, int chunks) {
  RowPlan plan;
  const std::int64_t groups = ceil_div(cols, kRowGroup);
  if (groups <= kWarpLanes * chunks) {
    plan.lanes = static_cast<int>(
        std::bit_ceil(static_cast<std::uint64_t>(std::min<std::int64_t>(groups, kWarpLanes))));
    plan.threads = kSmallBlock;
    plan.blocks = ceil_div(rows, kSmallBlock / plan.lanes);
    plan.fits = true;
    return plan;
  }
  // Two chunks a thread leave more threads to hide latency; only the longest rows use all chunks.
  const std::int64_t wanted = std::bit_ceil(static_cast<std::uint64_t>(ceil_div(groups, 2)));
  plan.threads = static_cast<int>(std::min<std::int64_t>(wanted, kMaxRowThreads));
  plan.lanes = plan.threads;
  plan.blocks = rows;
  plan.fits = groups <= std::int64_t{plan.threads} * chunks;
  return plan;
}

NormBackwardPlan plan_norm_backward(std::int64_t rows, std::int64_t cols, int sums,
                                    int value_bytes) {
  constexpr std::int64_t kMultiprocessors = 132;  // of a full Hopper GPU
  const int fewest = value_bytes == 8 ? norm_chunks<double> : norm_chunks<float>;
  const int most = value_bytes == 8 ? max_norm_chunks<double> : max_norm_chunks<float>;
  NormBackwardPlan plan;
  const std::int64_t groups = ceil_div(cols, kRowGroup);
  if (groups <= kWarpLanes * most) {
    plan.lanes = static_cast<int>(std::bit_ceil(
        static_cast<std::uint64_t>(std::min<std::int64_t>(ceil_div(groups, fewest), kWarpLanes))));
    plan.threads = kNormWarpThreads;
    plan.chunks = static_cast<int>(std::max<std::int64_t>(fewest, ceil_div(groups, plan.lanes)));
    plan.fits = true;
  } else {
    const std::int64_t wanted = std::bit_ceil(static_cast<std::uint64_t>(ceil_div(groups, fewest)));
    plan.threads = static_cast<int>(std::min<std::int64_t>(wanted, kMaxRowThreads));
    plan.lanes = plan.threads;
    plan.chunks = fewest;
    plan.fits = groups <= std::int64_t{plan.lanes} * plan.chunks;
  }
  plan.row_blocks = ceil_div(rows, plan.threads / plan.lanes);
  plan.blocks = std::min(
      plan.row_blocks,
      kMultiprocessors * resident_norm_blocks(plan.chunks, sums, value_bytes, plan.threads));
  return plan;
}

ColumnSumPlan plan_column_sums(std::int64_t rows, std::int64_t cols) {
  // Enough blocks to fill any current GPU, and at least 8 rows for each thread of a split.
  constexpr std::int64_t kWantedBlocks = 1024;
  constexpr std::int64_t kMaxSplits = 256;
  constexpr std::int64_t kFewestRows = 8 * kRowLanes;
  ColumnSumPlan plan;
  const std::int64_t column_blocks = ceil_div(cols, kColumnsOfBlock);
  const std::int64_t most = std::min(kMaxSplits, ceil_div(rows, kFewestRows));
  const std::int64_t splits = std::clamp<std::int64_t>(kWantedBlocks / column_blocks, 1, most);
  plan.rows_of_split = ceil_div(rows, splits);
  plan.splits = ceil_div(rows, plan.rows_of_split);
  plan.blocks = column_blocks * plan.splits;
  return plan;
}

}  // namespace tenon::cuda
