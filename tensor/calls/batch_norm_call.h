// What batch_norm's kernels on every device share: its mode, its sizes and its check.
#pragma once

#include <cstdint>

#include "tensor/kernel.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::ops {

/// (samples, channels, inner) of a tensor (N, C, …).
struct ChannelSizes {
  std::int64_t samples = 0;
  std::int64_t channels = 0;
  std::int64_t inner = 1;
  explicit ChannelSizes(const TensorView& view) : samples(view.size(0)), channels(view.size(1)) {
    for (int axis = 2; axis < view.rank(); ++axis) inner *= view.size(axis);
  }
  /// Values of one channel.
  std::int64_t count() const { return samples * inner; }
};

/// Whether the statistics are the batch's.
inline bool uses_batch_statistics(DropoutMode mode, bool training) { return acts(mode, training); }

/// The same for a batch of these sizes: an empty one has no statistics, and running ones stay as they
/// are. ValueError for one value a channel in training, which has no variance.
bool uses_batch_statistics(DropoutMode mode, bool training, const ChannelSizes& sizes);

}  // namespace tenon::ops
