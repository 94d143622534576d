// The gradient of attention on tensor cores for float16 and bfloat16, heads that are multiples of 8 up to
// 128, zero-padded to 64 or 128; float32 accumulators. By mma.sync here, and on compute capability 9.0 by
// wgmma (attention_backward_wgmma_sums.cuh), whose fragments are the same. Keys that a mask hides from all
// queries at either end are passed over.
//
//   P  = 2^((Q·Kᵀ·scale + mask)·log2(e) - lse) / (1-p)      K = what dropout keeps of P, else 0
//   dV = Kᵀ·dO      dS = K∘(dO·Vᵀ) - P∘((1-p)·Σ dO∘O)      dQ = dS·K·scale      dK = dSᵀ·Q·scale
//
// Two kernels; a warp of either alone sums what reaches its rows, in order: no atomics.
//   queries  a warp holds 16 or 32 queries and walks over the keys: S, dO·Vᵀ, dQ. It runs first and
//            leaves lse in units of log2 and Σ dO∘O in `statistics`.
//   keys     a warp holds 16 or 32 keys and walks over the queries: Sᵀ, V·dOᵀ, dV, dK.
// Both own the rows of their C fragments, so P and dS go from product to product in registers. Two row
// tiles a warp halve the traffic of shared memory, which would bind.
//
// These are seven products; one kernel could do with five if it added up dQ over the tiles of keys.
// In a fixed order that takes a float32 partial sum of dQ for each tile: with 128 keys a tile, at 512
// heads x 512 x 64, 0.5 GB of traffic, 0.13 ms at 4.2 TB/s, and at 64 x 2048 twice that; two more
// products are 34 and 69 GFLOP, 0.09 and 0.17 ms at 400 TFLOP/s, about what mma.sync can give.
#pragma once

#include <algorithm>

#include "cuda/device/memory.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/kernels/attention_backward_common.cuh"
#include "cuda/kernels/attention_mma.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {

inline constexpr int kStageRows = 64;  // rows of the other side that are copied at a time

/// Compile-time facts of both mma.sync kernels. A stage holds two tiles of the other side, a bit for each
/// pair where kDrops and, in the kernel for keys, the statistics of its queries.
template <class T_, int kHead_, bool kDrops_, bool kMasks_>
struct BackwardTile {
  using T = T_;
  static constexpr int kHead = kHead_;
  static constexpr bool kDrops = kDrops_;
  static constexpr bool kMasks = kMasks_;
  static constexpr bool kKeyMasks = false;  // masks may differ by query
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 2;
  static constexpr int kStepRows = 32;  // of a stage, multiplied at a time
  static constexpr int kRowTiles = kHead <= 64 ? 2 : 1;
  static constexpr int kColumnTiles = kStepRows / 8;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kThreads / 32 * kWarpRows;  // that a block owns
  static constexpr int kOwnBytes = kRows * kHead * 2;
  static constexpr int kOtherBytes = kStageRows * kHead * 2;
  static constexpr int kBits = 2 * kOtherBytes;  // offset in a stage
  static constexpr int kStatistics = kBits + (kDrops ? kStageRows * kRows / 8 : 0);
  // Tiles are aligned to 1024 bytes, for the swizzle and for the exclusive or of a step.
  static constexpr int kStageBytes = (kStatistics + 2 * kStageRows * 4 + 1023) / 1024 * 1024;
  static constexpr int kStages = 2 * kOwnBytes;  // offset in shared memory
  static constexpr int kBlock = kStages + 2 * kStageBytes;
};

/// Whether this compilation of an mma.sync kernel can run: an empty one is never launched.
#if defined(__CUDA_ARCH__)
inline constexpr bool kHasMma = __CUDA_ARCH__ >= 800;
#else
inline constexpr bool kHasMma = false;
#endif

/// The number of this warp, in a form that the compiler knows to be the same in all its lanes: wgmma
/// behind a branch that may diverge runs product by product.
__device__ __forceinline__ int uniform_warp() {
  return __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / 32, 0);
}

/// Two neighbouring elements, widened.
template <class T>
__device__ __forceinline__ float2 unpack_floats(std::uint32_t packed) {
  const auto& pair = reinterpret_cast<const Pack<T, 2>&>(packed);
  return {widen(pair.item[0]), widen(pair.item[1])};
}

template <class Tile>
__device__ __forceinline__ void clear_scores(Scores<Tile>& scores) {
#pragma unroll
  for (auto& row : scores) {
#pragma unroll
    for (auto& fragment : row) {
#pragma unroll
      for (float& score : fragment) score = 0;
    }
  }
}

/// A fragments of all of a warp's rows.
template <class Tile>
using AllRows = std::uint32_t[kHeadSteps<Tile>][Tile::kRowTiles][4];

template <class Tile>
__device__ __forceinline__ void load_all_rows(AllRows<Tile>& rows, std::uint32_t shared,
                                              int warp_row, int lane) {
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) load_rows<Tile>(rows[k], shared, warp_row, lane, k);
}

/// scores = rows·columnsᵀ.
template <class Tile>
__device__ __forceinline__ void multiply_rows(Scores<Tile>& scores, const AllRows<Tile>& rows,
                                              std::uint32_t columns, int lane) {
  clear_scores<Tile>(scores);
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) {
    add_row_products<Tile>(scores, rows[k], columns, lane, k);
  }
}

/// Calls f with the BackwardTile of a call.
template <class F>
void dispatch_backward_tile(const AttentionBackwardParams& params, DType dtype, const F& f) {
  const bool drops = params.has_dropout && !params.zero;
  const bool masks = params.mask_kind != AttentionMask::none && !params.zero;
  const auto pick = [&]<class T, int kHead> {
    if (masks && drops) return f.template operator()<BackwardTile<T, kHead, true, true>>();
    if (masks) return f.template operator()<BackwardTile<T, kHead, false, true>>();
    if (drops) return f.template operator()<BackwardTile<T, kHead, true, false>>();
    f.template operator()<BackwardTile<T, kHead, false, false>>();
  };
  const auto pick_head = [&]<class T> {
    if (std::max(params.head, params.head_v) > 64) return pick.template operator()<T, 128>();
    pick.template operator()<T, 64>();
  };
  if (dtype == DType::float16) return pick_head.template operator()<Half>();
  pick_head.template operator()<BFloat16>();
}

}  // namespace tenon::cuda
