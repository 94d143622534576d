// How batch_norm's kernels lay (N, C, …) over blocks. Channels are columns of rows (channels-last, or one
// value a plane), or planes of `inner` neighbouring values. A block has some channels and one split of their
// units: rows, or chunks of planes. Pure functions of sizes, so that sums do not depend on the GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/tensor_view.h"

namespace tenon::cuda {

inline constexpr int kChannelThreads = 256;
inline constexpr int kMaxChannelLanes = 32;

struct ChannelPlan {
  bool columns = false;
  int vector = 1;  // elements of one access: neighbouring channels, or values of a plane
  int lanes = 1;   // threads beside one another, a power of two; the others have further units
  std::int64_t channels = 0;
  std::int64_t inner = 1;
  std::int64_t chunks = 1;  // units of a plane
  std::int64_t units = 0;
  std::int64_t channel_blocks = 0;
  std::int64_t units_of_split = 1;
  std::int64_t splits = 1;
  // How far the next unit of a thread is from the one before.
  std::int64_t step_samples = 0;
  std::int64_t step_chunks = 0;

  std::int64_t blocks() const { return channel_blocks * splits; }
  std::int64_t unit_lanes() const { return kChannelThreads / lanes; }
};

/// (samples, channels, inner) as kernels go through it.
struct ChannelExtents {
  std::int64_t samples = 0;
  std::int64_t channels = 0;
  std::int64_t inner = 1;
  bool columns = false;

  /// Of a row-major or channels-last tensor.
  static ChannelExtents of(const TensorView& view);
  /// Whether all vectors of `length` elements start where a tensor's first does, give or take whole ones.
  bool divides(int length) const { return (columns ? channels : inner) % length == 0; }
};

/// `resident` blocks run on a multiprocessor at a time.
ChannelPlan plan_channels(const ChannelExtents& extents, int vector, int resident);

/// Values that a block leaves of each channel: a count and two more.
inline constexpr int kChannelPartials = 3;

/// Bytes of the partial results of all splits, and of `vectors` vectors of (channels), in whichever order
/// the operands will lie and whether accesses turn out to be aligned or not.
std::size_t channel_workspace(ChannelExtents extents, int vector, int resident, int vectors,
                              std::size_t value_bytes);

}  // namespace tenon::cuda
