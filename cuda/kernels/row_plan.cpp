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

RowStreamPlan plan_row_stream(std::int64_t rows, std::int64_t cols, const RowStreamNeeds& needs,
                              const DeviceLimits& limits) {
  // Sums depend on the number of blocks, so that it is a full Hopper GPU's on all others too.
  constexpr std::int64_t kMultiprocessors = 132;
  constexpr std::int64_t kSharedBytes = 227 << 10;
  const std::int64_t other_bytes = row_stream_other_bytes(needs.element_bytes);
  const int most = needs.element_bytes == 8 ? row_chunks<double> : row_chunks<float>;
  const int fewest = most / 2;  // more threads a row hide more latency
  RowStreamPlan plan;
  plan.operands = needs.operands;
  const std::int64_t groups = ceil_div(cols, kRowGroup);
  const bool in_warps = groups <= std::int64_t{kWarpLanes} * most;
  const auto wanted = static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(ceil_div(groups, fewest))));
  plan.lanes =
      static_cast<int>(std::min<std::int64_t>(wanted, in_warps ? kWarpLanes : kMaxRowThreads));
  plan.threads = in_warps ? kStreamThreads : plan.lanes;
  plan.chunks = static_cast<int>(
      std::clamp<std::int64_t>(ceil_div(groups, std::int64_t{plan.lanes}), fewest, most));
  const int largest = largest_stream_block(needs, plan.chunks);
  const int by_registers = resident_stream_blocks(needs, plan.chunks) * largest / plan.threads;
  const std::int64_t stage_bytes =
      std::int64_t{kRowGroup} * plan.threads * plan.chunks * needs.element_bytes * needs.operands;
  const std::int64_t block_bytes = kRowStreamStages * stage_bytes + other_bytes;
  const int by_memory = static_cast<int>(kSharedBytes / block_bytes);
  plan.shared_bytes = static_cast<std::size_t>(kRowStreamStages * stage_bytes);
  plan.fits = groups <= std::int64_t{plan.lanes} * plan.chunks && plan.threads <= largest &&
              block_bytes <= std::min<std::int64_t>(kSharedBytes, limits.shared_of_block);
  plan.row_blocks = ceil_div(rows, plan.threads / plan.lanes);
  const int resident = std::clamp(by_memory, 1, std::max(1, by_registers));
  plan.blocks = std::min(plan.row_blocks, kMultiprocessors * resident);
  return plan;
}

LossRowsPlan plan_loss_rows(std::int64_t rows, std::int64_t classes, int element_bytes,
                            const DeviceLimits& limits) {
  constexpr std::int64_t kReserved = 1024;  // bytes of a block's shared memory, beside its rows
  const bool wide = element_bytes == 8;
  // Rows of no classes still need a thread.
  const RowPlan rows_plan =
      plan_rows(rows, classes > 0 ? classes : 1, wide ? row_chunks<double> : row_chunks<float>);
  LossRowsPlan plan{
      .lanes = rows_plan.lanes, .threads = rows_plan.threads, .row_blocks = rows_plan.blocks};
  const std::int64_t vector = 16 / element_bytes;
  plan.held_pitch = ceil_div(classes, vector) * vector;
  const std::int64_t bytes = plan.threads / plan.lanes * plan.held_pitch * element_bytes;
  plan.held = !wide && bytes + kReserved <= limits.shared_of_block;
  std::int64_t resident =
      std::max(1, (wide ? kWideResidentThreads : kResidentThreads) / plan.threads);
  if (plan.held) {
    plan.shared_bytes = static_cast<std::size_t>(bytes);
    resident = std::clamp<std::int64_t>(limits.shared_of_multiprocessor / (bytes + 2 * kReserved),
                                        1, resident);
  }
  plan.blocks = std::min(plan.row_blocks, resident * limits.multiprocessors);
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
