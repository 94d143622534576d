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

}  // namespace tenon::cuda
