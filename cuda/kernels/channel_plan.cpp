#include "cuda/kernels/channel_plan.h"

#include <algorithm>
#include <bit>

#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

// Of an H200; on other GPUs only the number of blocks is less apt.
constexpr std::int64_t kMultiprocessors = 132;
/// Waves of blocks after which an uneven last one costs little.
constexpr std::int64_t kManyWaves = 4;

int lanes_for(std::int64_t vectors) {
  const auto wanted =
      static_cast<std::uint64_t>(std::clamp<std::int64_t>(vectors, 1, kMaxChannelLanes));
  return static_cast<int>(std::bit_ceil(wanted));
}

}  // namespace

ChannelExtents ChannelExtents::of(const TensorView& view) {
  ChannelExtents result{view.size(0), view.size(1), 1, !view.is_contiguous()};
  for (int axis = 2; axis < view.rank(); ++axis) result.inner *= view.size(axis);
  if (result.channels == 1) return {1, 1, result.samples * result.inner, false};
  if (result.inner == 1) result.columns = true;
  return result;
}

ChannelPlan plan_channels(const ChannelExtents& extents, int vector, int resident) {
  ChannelPlan plan;
  plan.columns = extents.columns;
  plan.vector = vector;
  plan.channels = extents.channels;
  plan.inner = extents.inner;
  if (plan.columns) {
    plan.lanes = lanes_for(ceil_div(extents.channels, vector));
    plan.channel_blocks = ceil_div(extents.channels, plan.lanes * vector);
    plan.units = extents.samples * extents.inner;
  } else {
    plan.lanes = lanes_for(ceil_div(extents.inner, vector));
    plan.channel_blocks = extents.channels;
    plan.chunks = std::max<std::int64_t>(1, ceil_div(extents.inner, plan.lanes * vector));
    plan.units = extents.samples * plan.chunks;
  }
  plan.step_samples = plan.unit_lanes() / plan.chunks;
  plan.step_chunks = plan.unit_lanes() % plan.chunks;
  // One wave where it is nearly full, else many.
  const std::int64_t wave = kMultiprocessors * resident;
  const std::int64_t blocks = std::max<std::int64_t>(1, plan.channel_blocks);
  std::int64_t wanted = wave / blocks;
  if (wanted * blocks * 10 < wave * 9) wanted = ceil_div(wave * kManyWaves, blocks);
  const std::int64_t lanes = plan.unit_lanes();
  const std::int64_t most = std::max<std::int64_t>(1, ceil_div(plan.units, lanes));
  wanted = std::clamp<std::int64_t>(wanted, 1, most);
  plan.units_of_split =
      std::max<std::int64_t>(1, ceil_div(ceil_div(plan.units, wanted), lanes)) * lanes;
  plan.splits = std::max<std::int64_t>(1, ceil_div(plan.units, plan.units_of_split));
  return plan;
}

std::size_t channel_workspace(ChannelExtents extents, int vector, int resident, int vectors,
                              std::size_t value_bytes) {
  std::int64_t splits = 1;
  for (const bool columns : {false, true}) {
    extents.columns = columns;
    for (int length = vector; length > 0; length /= 2) {
      if (!extents.divides(length)) continue;
      splits = std::max(splits, plan_channels(extents, length, resident).splits);
    }
  }
  return static_cast<std::size_t>((splits * kChannelPartials + vectors) * extents.channels) *
         value_bytes;
}

}  // namespace tenon::cuda
