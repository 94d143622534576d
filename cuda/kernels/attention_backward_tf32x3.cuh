// The gradient of attention in float32 on tensor cores, each product of floats by three of TF32 numbers
// (cuda/device/tf32x3.cuh); heads that are multiples of 4 up to 128, zero-padded to 64 or 128. Keys that a
// mask of keys hides at either end are passed over.
//
//   P  = 2^((Q·Kᵀ·scale + mask)·log2(e) - lse)     D = what dropout keeps, times 1/(1-p)
//   dV = (P∘D)ᵀ·dO      dS = P∘(D∘(dO·Vᵀ) - Σ dO∘O)      dQ = dS·K·scale      dK = dSᵀ·Q·scale
//
// Two kernels, as for 16 bits (attention_backward_mma.cuh); a warp of either alone sums what reaches
// its rows, in order: no atomics.
//   queries  a warp holds 32 queries and walks over the keys: S, dO·Vᵀ, dQ. It runs first and leaves
//            lse in units of log2 and Σ dO∘O in `statistics`.
//   keys     a warp holds 16 keys, for two sums, and walks over the queries: Sᵀ, V·dOᵀ, dV, dK.
#pragma once

#include "cuda/kernels/attention_backward_common.cuh"
#include "cuda/kernels/attention_tf32x3.cuh"

namespace tenon::cuda {

/// What a kernel takes: masks of keys, by key_bias, or of (queries, keys).
enum class Tf32Masks : std::uint8_t { none, keys, pairs };

/// Compile-time facts of a kernel. A stage holds two tiles of the other side and, where kDrops, a bit
/// for each pair; in the kernel for keys also the statistics of its queries.
template <int kHead_, int kRowTiles_, int kMinBlocks_, bool kDrops_, Tf32Masks kMasks_>
struct Tf32BackwardTile {
  static constexpr int kThreads = 128;
  static constexpr int kHead = kHead_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kMinBlocks = kMinBlocks_;
  static constexpr bool kDrops = kDrops_;
  static constexpr bool kMasks = kMasks_ != Tf32Masks::none;
  static constexpr bool kPairMasks = kMasks_ == Tf32Masks::pairs;
  static constexpr int kStageRows = 32;
  static constexpr int kColumnTiles = kStageRows / 8;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kThreads / 32 * kWarpRows;  // that a block owns
};

/// Offsets in shared memory, in bytes, and in a stage.
template <class Tile>
struct Tf32BackwardLayout {
  static constexpr int kOwn = tile_bytes<Tile>(Tile::kRows);
  static constexpr int kOther = tile_bytes<Tile>(Tile::kStageRows);
  static constexpr int kStages = 2 * kOwn;
  static constexpr int kStatistics = 2 * kOther;
  static constexpr int kBits = kStatistics + 2 * Tile::kStageRows * 4;
  static constexpr int kStageBytes =
      kBits + (Tile::kDrops ? Tile::kStageRows * Tile::kRows / 8 : 0);
  // Of a step, each warp's own part: (queries, keys), or (kStageRows, keys of the warp).
  static constexpr int kPairs = kStages + 2 * kStageBytes;
  static constexpr int kWarpPairs = kPairStride<Tile::kStageRows> * Tile::kWarpRows * 4;
  static constexpr int kWarpKeyPairs = kPairStride<Tile::kWarpRows> * Tile::kStageRows * 4;
  static constexpr int kPairBytes = kWarpPairs > kWarpKeyPairs ? kWarpPairs : kWarpKeyPairs;
  static constexpr int kBlock = kPairs + (Tile::kPairMasks ? Tile::kThreads / 32 * kPairBytes : 0);
  static constexpr int kBytes = kBlock + static_cast<int>(sizeof(BackwardBlock<float>));
};

/// Calls f with whether a call drops anything, and its mask.
template <class F>
void dispatch_drops_and_masks(const AttentionBackwardParams& params, const F& f) {
  using enum Tf32Masks;
  const auto pick = [&]<Tf32Masks kMasks> {
    if (params.has_dropout && !params.zero) return f.template operator()<true, kMasks>();
    f.template operator()<false, kMasks>();
  };
  if (params.mask_kind == AttentionMask::none || params.zero) {
    return pick.template operator()<none>();
  }
  if (params.key_bias != nullptr) return pick.template operator()<keys>();
  pick.template operator()<pairs>();
}

/// Starts copying kTileRows rows, the first of which is `row`, of two matrices.
template <class Tile, int kTileRows>
__device__ __forceinline__ void copy_queries(const AttentionBackwardParams& params,
                                             const BackwardBlock<float>& block,
                                             std::uint32_t shared, std::int64_t row) {
  const std::int64_t rows = params.length - row;
  copy_tile<Tile, kTileRows>(shared, block.query + row * params.query_strides.row,
                             params.query_strides.row, rows, params.head);
  copy_tile<Tile, kTileRows>(shared + tile_bytes<Tile>(kTileRows),
                             block.grad + row * params.grad_strides.row, params.grad_strides.row,
                             rows, params.head_v);
}

template <class Tile, int kTileRows>
__device__ __forceinline__ void copy_keys(const AttentionBackwardParams& params,
                                          const BackwardBlock<float>& block, std::uint32_t shared,
                                          std::int64_t row) {
  const std::int64_t rows = params.keys - row;
  copy_tile<Tile, kTileRows>(shared, block.key + row * params.key_strides.row,
                             params.key_strides.row, rows, params.head);
  copy_tile<Tile, kTileRows>(shared + tile_bytes<Tile>(kTileRows),
                             block.value + row * params.value_strides.row, params.value_strides.row,
                             rows, params.head_v);
}

/// The decisions of the query `row` of this batch, from the one on `key` on.
__device__ __forceinline__ const std::uint8_t* keep_bits_at(const AttentionBackwardParams& params,
                                                            const BackwardBlock<float>& block,
                                                            std::int64_t row, std::int64_t key) {
  return params.keep_bits + (block.batch * params.length + row) * params.keep_bits_stride + key / 8;
}

/// Calls step(offset of the stage in shared memory, first row) for each stage of rows from `first` to
/// `end`, while the next one is copied by copy(address, first row); what was copied before comes too.
template <class Tile, class Copy, class Step>
__device__ __forceinline__ void for_each_stage(std::uint32_t shared, std::int64_t first,
                                               std::int64_t end, const Copy& copy,
                                               const Step& step) {
  using SharedLayout = Tf32BackwardLayout<Tile>;
  int stage = SharedLayout::kStages;
  if (first < end) copy(shared + stage, first);
  copy_async_commit();
  for (std::int64_t row = first; row < end; row += Tile::kStageRows) {
    copy_async_wait<0>();
    __syncthreads();  // this stage has come, and no warp reads the other one any more
    const int next = 2 * SharedLayout::kStages + SharedLayout::kStageBytes - stage;
    if (row + Tile::kStageRows < end) {
      copy(shared + next, row + Tile::kStageRows);
      copy_async_commit();
    }
    step(stage, row);
    stage = next;
  }
}

}  // namespace tenon::cuda
