// Passes over (N, C, …) whose results belong to channels, laid out by ChannelPlan: where a thread's
// elements are, and sums of channels in two stages. A block leaves a count and two values of each of its
// channels; a second launch merges those of all splits. Both orders are fixed, there are no atomics.
#pragma once

#include <limits>

#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/channel_plan.h"
#include "cuda/launch.h"

namespace tenon::cuda {

/// Elements of one access at most; a double is as wide as what a thread should read alone.
template <class T>
inline constexpr int channel_vector = sizeof(T) == 8 ? 1 : vector_length<T>;

/// Where kCount accesses of a thread are; bit i of `valid` says that access i exists.
template <int kCount>
struct Places {
  std::int64_t at[kCount];
  unsigned valid;
  static constexpr unsigned kAll = (1U << kCount) - 1;
  __device__ __forceinline__ bool has(int i) const { return (valid >> i & 1U) != 0; }
};

/// A thread's part of the block's split.
template <int kVector, bool kColumns>
struct ChannelTile {
  /// Channels that a thread has.
  static constexpr int kChannels = kColumns ? kVector : 1;

  const ChannelPlan& plan;
  std::int64_t split;
  std::int64_t channel;  // the first of the thread's
  std::int64_t begin, end;
  int lane;       // beside one another
  int unit_lane;  // one behind another
  int unit_lanes;
  bool active;  // has channels

  __device__ __forceinline__ explicit ChannelTile(const ChannelPlan& of) : plan(of) {
    const std::int64_t block = block_index();
    split = block / plan.channel_blocks;
    const std::int64_t channel_block = block - split * plan.channel_blocks;
    lane = static_cast<int>(threadIdx.x) & (plan.lanes - 1);
    unit_lanes = kChannelThreads / plan.lanes;
    unit_lane = static_cast<int>(threadIdx.x) / plan.lanes;
    channel = kColumns ? (channel_block * plan.lanes + lane) * kVector : channel_block;
    active = split < plan.splits && channel < plan.channels;
    begin = split * plan.units_of_split;
    end = begin + plan.units_of_split < plan.units ? begin + plan.units_of_split : plan.units;
  }

  /// The thread that stores values of its channels: one of each channel in all blocks.
  __device__ __forceinline__ bool stores_channels() const {
    return active && split == 0 && unit_lane == 0 && (kColumns || lane == 0);
  }

  template <int kCount>
  __device__ __forceinline__ Places<kCount> places(std::int64_t unit) const {
    Places<kCount> result;
    result.valid = 0;
    if constexpr (kColumns) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const std::int64_t row = unit + i * unit_lanes;
        result.at[i] = row * plan.channels + channel;
        if (active && row < end) result.valid |= 1U << i;
      }
    } else {
      std::int64_t sample = unit;
      if (plan.chunks > 1) {
        sample = (unit >> 32) == 0 && (plan.chunks >> 32) == 0
                     ? static_cast<std::uint32_t>(unit) / static_cast<std::uint32_t>(plan.chunks)
                     : unit / plan.chunks;
      }
      std::int64_t chunk = unit - sample * plan.chunks;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const std::int64_t position = (chunk * plan.lanes + lane) * kVector;
        result.at[i] = (sample * plan.channels + channel) * plan.inner + position;
        if (unit + i * unit_lanes < end && position < plan.inner) result.valid |= 1U << i;
        sample += plan.step_samples;
        chunk += plan.step_chunks;
        if (chunk >= plan.chunks) {
          chunk -= plan.chunks;
          ++sample;
        }
      }
    }
    return result;
  }

  /// Calls f with the places of kCount units at a time.
  template <int kCount, class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    for (std::int64_t unit = begin + unit_lane; unit < end; unit += kCount * unit_lanes) {
      f(places<kCount>(unit));
    }
  }
  /// The same from the last to the first: what was read last is in the cache still.
  template <int kCount, class F>
  __device__ __forceinline__ void for_each_backwards(const F& f) const {
    const std::int64_t step = kCount * unit_lanes;
    const std::int64_t first = begin + unit_lane;
    if (first >= end) return;
    for (std::int64_t unit = first + (end - 1 - first) / step * step; unit >= first; unit -= step) {
      f(places<kCount>(unit));
    }
  }
};

/// The packs at these places; zeros where there is none.
template <class T, int kVector, int kCount>
__device__ __forceinline__ void load_places(const void* source, const Places<kCount>& places,
                                            Pack<T, kVector> (&packs)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    packs[i] = {};
    if (places.has(i)) {
      packs[i] = load_pack<T, kVector>(static_cast<const T*>(source) + places.at[i]);
    }
  }
}

/// What is known of kChannels channels: of `count` values of each, two numbers.
template <class C, int kChannels>
struct ChannelPartial {
  C count = C(0);
  C first[kChannels] = {};
  C second[kChannels] = {};
};

/// Two sums.
struct MergeSums {
  template <class C, int kChannels>
  __device__ __forceinline__ void operator()(ChannelPartial<C, kChannels>& a,
                                             const ChannelPartial<C, kChannels>& b) const {
    a.count += b.count;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      a.first[i] += b.first[i];
      a.second[i] += b.second[i];
    }
  }
};

/// A mean and the sum of squared deviations from it (Chan, Golub, LeVeque, "Updating formulae and a
/// pairwise algorithm for computing sample variances", 1979).
struct MergeMoments {
  template <class C, int kChannels>
  __device__ __forceinline__ void operator()(ChannelPartial<C, kChannels>& a,
                                             const ChannelPartial<C, kChannels>& b) const {
    constexpr C kLargest = std::numeric_limits<C>::max();
    const C count = a.count + b.count;
    const C share = count > C(0) ? b.count / count : C(0);
    const C weight = a.count * share;
    a.count = count;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const C difference = b.first[i] - a.first[i];
      const bool finite = absolute(difference) <= kLargest;
      a.second[i] += b.second[i] + difference * (difference * weight);
      a.first[i] = finite ? a.first[i] + difference * share : a.first[i] + b.first[i];
    }
  }
};

/// The partial of the thread whose number differs in the bits of `mask`.
template <class C, int kChannels>
__device__ __forceinline__ ChannelPartial<C, kChannels> shuffled(
    const ChannelPartial<C, kChannels>& partial, int mask) {
  ChannelPartial<C, kChannels> other;
  other.count = __shfl_xor_sync(0xffffffffU, partial.count, mask);
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    other.first[i] = __shfl_xor_sync(0xffffffffU, partial.first[i], mask);
    other.second[i] = __shfl_xor_sync(0xffffffffU, partial.second[i], mask);
  }
  return other;
}

/// Value `number` of a channel in the partial results of `split`.
template <class C>
__device__ __forceinline__ C& partial_at(void* parts, const ChannelPlan& plan, std::int64_t split,
                                         int number, std::int64_t channel) {
  return static_cast<C*>(parts)[(split * kChannelPartials + number) * plan.channels + channel];
}

/// Merges the partials of a block's threads, and stores those of its channels. Every thread must call it.
template <class Tile, class C, class Merge>
__device__ __forceinline__ void store_block_partials(const Tile& tile, void* parts,
                                                     ChannelPartial<C, Tile::kChannels>& partial,
                                                     const Merge& merge) {
  constexpr int kWarps = kChannelThreads / kWarp;
  constexpr int kColumns = kMaxChannelLanes * Tile::kChannels;
  __shared__ C shared[kChannelPartials][kWarps][kColumns];
  const bool columns = tile.plan.columns;
  const int lanes = columns ? tile.plan.lanes : 1;
#pragma unroll 1
  for (int mask = lanes; mask < kWarp; mask *= 2) merge(partial, shuffled(partial, mask));
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int within = static_cast<int>(threadIdx.x) % kWarp;
  if (within < lanes) {
#pragma unroll
    for (int i = 0; i < Tile::kChannels; ++i) {
      const int column = within * Tile::kChannels + i;
      shared[0][warp][column] = partial.count;
      shared[1][warp][column] = partial.first[i];
      shared[2][warp][column] = partial.second[i];
    }
  }
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= lanes * Tile::kChannels || tile.split >= tile.plan.splits) return;
  const std::int64_t first = columns ? tile.channel - tile.lane * Tile::kChannels : tile.channel;
  const std::int64_t channel = first + column;
  if (channel >= tile.plan.channels) return;
  ChannelPartial<C, 1> total;
  for (int w = 0; w < kWarps; ++w) {
    merge(total, ChannelPartial<C, 1>{
                     shared[0][w][column], {shared[1][w][column]}, {shared[2][w][column]}});
  }
  partial_at<C>(parts, tile.plan, tile.split, 0, channel) = total.count;
  partial_at<C>(parts, tile.plan, tile.split, 1, channel) = total.first[0];
  partial_at<C>(parts, tile.plan, tile.split, 2, channel) = total.second[0];
}

inline constexpr int kMergedChannels = 8;  // of a block of the second launch
inline constexpr int kMergeThreads = 512;

/// Merges the splits of kMergedChannels channels, and calls finish(channel, partial) for each.
template <class C, class Merge, class Finish>
__device__ __forceinline__ void merge_splits(const ChannelPlan& plan, void* parts,
                                             const Merge& merge, const Finish& finish) {
  constexpr int kLanes = kMergeThreads / kMergedChannels;
  constexpr int kWarps = kMergeThreads / kWarp;
  using Partial = ChannelPartial<C, 1>;
  __shared__ C shared[kChannelPartials][kWarps][kMergedChannels];
  const int column = static_cast<int>(threadIdx.x) % kMergedChannels;
  const int lane = static_cast<int>(threadIdx.x) / kMergedChannels;
  const std::int64_t channel = block_index() * kMergedChannels + column;
  Partial total;
  if (channel < plan.channels) {
#pragma unroll 4
    for (std::int64_t split = lane; split < plan.splits; split += kLanes) {
      merge(total, Partial{partial_at<C>(parts, plan, split, 0, channel),
                           {partial_at<C>(parts, plan, split, 1, channel)},
                           {partial_at<C>(parts, plan, split, 2, channel)}});
    }
  }
#pragma unroll
  for (int mask = kMergedChannels; mask < kWarp; mask *= 2) merge(total, shuffled(total, mask));
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x % kWarp < kMergedChannels) {
    shared[0][warp][column] = total.count;
    shared[1][warp][column] = total.first[0];
    shared[2][warp][column] = total.second[0];
  }
  __syncthreads();
  if (threadIdx.x >= kWarps * kMergedChannels) return;
  const int own = static_cast<int>(threadIdx.x) / kWarps;
  const int from = static_cast<int>(threadIdx.x) % kWarps;
  total = {shared[0][from][own], {shared[1][from][own]}, {shared[2][from][own]}};
#pragma unroll
  for (int mask = 1; mask < kWarps; mask *= 2) merge(total, shuffled(total, mask));
  const std::int64_t merged = block_index() * kMergedChannels + own;
  if (from == 0 && merged < plan.channels) finish(merged, total);
}

/// Elements of an optional vector for a thread's channels from `channel` on; by 16-byte accesses where it
/// is aligned.
template <class T, int kChannels>
__device__ __forceinline__ void load_channel_values(const void* vector, std::int64_t channel,
                                                    compute_type<T> absent,
                                                    compute_type<T> (&values)[kChannels]) {
  if (vector == nullptr) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) values[i] = absent;
    return;
  }
  const T* source = static_cast<const T*>(vector) + channel;
  if (reinterpret_cast<std::uintptr_t>(source) % sizeof(Pack<T, kChannels>) == 0) {
    load_widened(source, values);
  } else {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) values[i] = widen(source[i]);
  }
}

/// Element `channel` of an optional vector.
template <class T>
__device__ __forceinline__ compute_type<T> channel_value(const void* vector, std::int64_t channel,
                                                         compute_type<T> absent) {
  return vector != nullptr ? widen(static_cast<const T*>(vector)[channel]) : absent;
}

/// Elements of an access to tensors at these addresses, null ones aside: vectors, half ones, or one.
template <class T, class... Pointers>
int vector_for(const ChannelExtents& extents, const Pointers*... data) {
  constexpr int kMost = channel_vector<T>;
  for (int length = kMost; length > 1 && 2 * length >= kMost; length /= 2) {
    if (extents.divides(length) && (is_aligned(data, length * sizeof(T)) && ...)) return length;
  }
  return 1;
}

/// Calls f.operator()<kVector, kColumns>() for a plan.
template <class T, class F>
void dispatch_channels(const ChannelPlan& plan, const F& f) {
  constexpr int kMost = channel_vector<T>;
  constexpr int kHalf = kMost > 1 ? kMost / 2 : 1;
  const auto with_order = [&]<int kVector>() {
    plan.columns ? f.template operator()<kVector, true>() : f.template operator()<kVector, false>();
  };
  if (plan.vector == kMost) {
    with_order.template operator()<kMost>();
  } else if (plan.vector == kHalf) {
    with_order.template operator()<kHalf>();
  } else {
    with_order.template operator()<1>();
  }
}

}  // namespace tenon::cuda
