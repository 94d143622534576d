// Scaled dot-product attention by wgmma, for heads up to 128, without a mask, with causality, or with a
// mask. The order of a row's work is that of FlashAttention-3 (J. Shah
// et al., 2024). A block stays on its multiprocessor and computes item after item, an item being 128
// queries of one batch:
//
//   warpgroup 0       one thread starts the copies: an item's queries, and tiles of 128 keys to a ring
//   warpgroups 1, 2   hold 64 queries each in registers, as A fragments, and walk over the tiles
//
//   queued      S(i+1) = Q·K(i+1)   O += P(i)·V(i)
//   meanwhile                       P(i+1) of S(i+1)
//
// A mask of keys becomes 128 float32 for each tile of keys, and a list of the tiles that it shows anything of:
// the others cost nothing. One of
// (queries, keys) is copied with the keys. Batches have at most three axes; those without stride have size 1 in the maps.
#include <algorithm>

#include "cuda/device/tma.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/device_limits.h"
#include "cuda/kernels/attention_mma.cuh"
#include "cuda/kernels/attention_softmax.cuh"
#include "cuda/tensor_map.h"

namespace tenon::cuda {
namespace {

constexpr int kRows = 128;  // of an item
constexpr int kKeys = 128;  // of a tile
constexpr int kBlockThreads = 384;
constexpr int kConsumerWarps = 8;
constexpr int kMapAxes = 3;  // of batches
constexpr int kHalfBytes = 128 * 128;  // 64 columns of a tile
constexpr int kKeyMaskBytes = kKeys * 4;

}  // namespace

/// A mask of all queries' keys, or of each query's own.
enum class MaskForm : std::uint8_t { none, boolean_keys, additive_keys, boolean, additive };

/// Compile-time facts of a kernel.
template <class T_, int kHead_, MaskForm kMask_>
struct AttentionWgmmaTile {
  using T = T_;
  static constexpr int kHead = kHead_;
  static constexpr MaskForm kMask = kMask_;
  static constexpr bool kMasksKeys =
      kMask == MaskForm::boolean_keys || kMask == MaskForm::additive_keys;
  static constexpr bool kAdds = kMask == MaskForm::additive_keys || kMask == MaskForm::additive;
  static constexpr bool kMasksPairs = kMask == MaskForm::boolean || kMask == MaskForm::additive;
  static constexpr int kRowTiles = 1;
  static constexpr int kColumnTiles = kKeys / 8;
  static constexpr int kHalves = kHead / 64;
  static constexpr int kStages = kHead == 128 ? 2 : kMask == MaskForm::additive ? 3 : 4;

  static constexpr int kTileBytes = kHalves * kHalfBytes;  // of queries, keys, values or results
  static constexpr int kKeyTiles = kTileBytes;
  static constexpr int kValueTiles = kKeyTiles + kStages * kTileBytes;
  static constexpr int kResults = kValueTiles + kStages * kTileBytes;
  static constexpr int kMasks = kResults + kTileBytes;
  static constexpr int kMaskBytes = kMask == MaskForm::additive  ? 2 * kHalfBytes
                                    : kMask == MaskForm::boolean ? kHalfBytes
                                    : kMasksKeys                 ? kKeyMaskBytes
                                                                 : 0;
  static constexpr int kStarts = kMasks + kStages * kMaskBytes;  // an int per stage
  static constexpr int kItem = kStarts + 16;
  static constexpr int kBarriers = kItem + 16;
  static constexpr int kSharedBytes = kBarriers + (4 * kStages + 2) * kBarrierBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

namespace {

/// What the consumers must know of an item.
struct Item {
  int batch, row_block, tiles;
};

/// The mask of keys, prepared: (masks, tiles, kKeys) float32, and (masks, 1 + tiles) int, how many
/// tiles show anything and which.
struct KeyMask {
  float* values;
  int* lists;
  std::int64_t batch_steps[kMapAxes];  // of the mask's number along the batch axes
  int tiles;
};

struct Params {
  CUtensorMap query, key, value, pairs;  // the last: a mask of pairs
  AttentionParams attention;
  KeyMask mask;
  int batch_sizes[kMapAxes];
  int query_steps[kMapAxes];  // 0 or 1: what a batch index counts for in the map
  int key_steps[kMapAxes];
  int value_steps[kMapAxes];
  int pair_steps[kMapAxes];
  int row_blocks, items;
  float scale;
};

/// Where the parts of a block's shared memory are.
template <class Tile>
struct Layout {
  unsigned char* shared;
  std::uint32_t address;

  __device__ __forceinline__ explicit Layout(unsigned char* shared_)
      : shared(shared_), address(shared_address(shared_)) {}
  __device__ __forceinline__ std::uint32_t barrier(int index) const {
    return address + Tile::kBarriers + index * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t key_full(int stage) const { return barrier(stage); }
  __device__ __forceinline__ std::uint32_t key_empty(int stage) const {
    return barrier(Tile::kStages + stage);
  }
  __device__ __forceinline__ std::uint32_t value_full(int stage) const {
    return barrier(2 * Tile::kStages + stage);
  }
  __device__ __forceinline__ std::uint32_t value_empty(int stage) const {
    return barrier(3 * Tile::kStages + stage);
  }
  __device__ __forceinline__ std::uint32_t item_full() const { return barrier(4 * Tile::kStages); }
  __device__ __forceinline__ std::uint32_t item_empty() const {
    return barrier(4 * Tile::kStages + 1);
  }
  __device__ __forceinline__ std::uint32_t keys(int stage) const {
    return address + Tile::kKeyTiles + stage * Tile::kTileBytes;
  }
  __device__ __forceinline__ std::uint32_t values(int stage) const {
    return address + Tile::kValueTiles + stage * Tile::kTileBytes;
  }
  __device__ __forceinline__ int& start(int stage) const {
    return reinterpret_cast<int*>(shared + Tile::kStarts)[stage];
  }
  __device__ __forceinline__ Item& item() const {
    return *reinterpret_cast<Item*>(shared + Tile::kItem);
  }
};

/// Starts the copies of 128 rows.
template <class Tile>
__device__ __forceinline__ void copy_rows(std::uint32_t shared, const CUtensorMap& map, int row,
                                          const int (&batch)[kMapAxes],
                                          const int (&steps)[kMapAxes], std::uint32_t barrier) {
#pragma unroll
  for (int half = 0; half < Tile::kHalves; ++half) {
    const int at[5] = {64 * half, row, batch[0] * steps[0], batch[1] * steps[1],
                       batch[2] * steps[2]};
    copy_tensor_async(shared + half * kHalfBytes, map, at, barrier);
  }
}

/// The copying thread: everything that this block's items need.
template <class Tile>
__device__ __forceinline__ void copy_items(const Params& p, const Layout<Tile>& layout) {
  RingPosition<Tile::kStages> ring;
  std::uint32_t turn = 0;
  const int batches = static_cast<int>(p.attention.batches);
  for (int index = static_cast<int>(blockIdx.x); index < p.items; index += gridDim.x, ++turn) {
    // Causal items get shorter from block to block, so that the last ones to start end soon.
    const bool is_causal = p.attention.is_causal;
    const int batch = is_causal ? index % batches : index / p.row_blocks;
    const int row_block =
        is_causal ? p.row_blocks - 1 - index / batches : index - batch * p.row_blocks;
    int at[kMapAxes];
    int rest = batch;
#pragma unroll
    for (int axis = kMapAxes - 1; axis >= 0; --axis) {
      at[axis] = rest % p.batch_sizes[axis];
      rest /= p.batch_sizes[axis];
    }
    const int seen = static_cast<int>(visible_keys(p.attention, (row_block + 1) * kRows));
    int tiles = (seen + kKeys - 1) / kKeys;
    const int* list = nullptr;
    const float* mask = nullptr;
    if constexpr (Tile::kMasksKeys) {
      int number = 0;
      for (int axis = 0; axis < kMapAxes; ++axis) {
        number += at[axis] * static_cast<int>(p.mask.batch_steps[axis]);
      }
      mask = p.mask.values + static_cast<std::int64_t>(number) * p.mask.tiles * kKeys;
      list = p.mask.lists + static_cast<std::int64_t>(number) * (p.mask.tiles + 1) + 1;
      tiles = min(tiles, list[-1]);
      while (tiles > 0 && list[tiles - 1] * kKeys >= seen) --tiles;
    }
    barrier_wait(layout.item_empty(), (turn & 1U) ^ 1U);
    layout.item() = {batch, row_block, tiles};
    barrier_expect(layout.item_full(), Tile::kTileBytes);
    copy_rows<Tile>(layout.address, p.query, row_block * kRows, at, p.query_steps,
                    layout.item_full());
    for (int i = 0; i < tiles; ++i) {
      const int key0 = (Tile::kMasksKeys ? list[i] : i) * kKeys;
      barrier_wait(layout.key_empty(ring.stage), ring.parity ^ 1U);
      layout.start(ring.stage) = key0;
      barrier_expect(layout.key_full(ring.stage), Tile::kTileBytes + Tile::kMaskBytes);
      copy_rows<Tile>(layout.keys(ring.stage), p.key, key0, at, p.key_steps,
                      layout.key_full(ring.stage));
      const std::uint32_t target = layout.address + Tile::kMasks + ring.stage * Tile::kMaskBytes;
      if constexpr (Tile::kMasksKeys) {
        copy_bytes_async(target, mask + key0, kKeyMaskBytes, layout.key_full(ring.stage));
      }
      if constexpr (Tile::kMasksPairs) {
#pragma unroll
        for (int part = 0; part < Tile::kMaskBytes / kHalfBytes; ++part) {
          const int corner[5] = {key0 + 64 * part, row_block * kRows, at[0] * p.pair_steps[0],
                                 at[1] * p.pair_steps[1], at[2] * p.pair_steps[2]};
          copy_tensor_async(target + part * kHalfBytes, p.pairs, corner,
                            layout.key_full(ring.stage));
        }
      }
      barrier_wait(layout.value_empty(ring.stage), ring.parity ^ 1U);
      barrier_expect(layout.value_full(ring.stage), Tile::kTileBytes);
      copy_rows<Tile>(layout.values(ring.stage), p.value, key0, at, p.value_steps,
                      layout.value_full(ring.stage));
      ring.advance();
    }
  }
}

/// 8 of the column tiles, the accumulators of one product.
template <int kTiles>
__device__ __forceinline__ float (&part(float (&tiles)[kTiles][4], int i))[8][4] {
  return reinterpret_cast<float (&)[8][4]>(tiles[8 * i]);
}

template <class Tile>
using AllRows = std::uint32_t[Tile::kHead / 16][4];

/// scores = Q · keysᵀ, started.
template <class Tile>
__device__ __forceinline__ void start_scores(Scores<Tile>& scores, const AllRows<Tile>& query,
                                             std::uint32_t keys) {
  using T = typename Tile::T;
  const std::uint64_t tile = wgmma_descriptor(keys);
  wgmma_fence();
#pragma unroll
  for (int n = 0; n < kKeys / 64; ++n) {
    wgmma_m64n64k16<T, false, false>(part(scores[0], n), query[0], tile + n * (64 * 128 / 16));
#pragma unroll
    for (int k = 1; k < Tile::kHead / 16; ++k) {
      wgmma_m64n64k16<T, false, true>(
          part(scores[0], n), query[k],
          tile + n * (64 * 128 / 16) + k / 4 * (kHalfBytes / 16) + k % 4 * 2);
    }
  }
  wgmma_commit();
}

/// sums += weights · values, started.
template <class Tile>
__device__ __forceinline__ void start_sums(Sums<Tile>& sums, const Weights<Tile>& weights,
                                           std::uint32_t values) {
  const std::uint64_t tile = wgmma_descriptor(values);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    const std::uint32_t a[4] = {weights[0][2 * k][0], weights[0][2 * k][1],
                                weights[0][2 * k + 1][0], weights[0][2 * k + 1][1]};
#pragma unroll
    for (int half = 0; half < Tile::kHalves; ++half) {
      wgmma_m64n64k16<typename Tile::T, true, true>(
          part(sums[0], half), a, tile + half * (kHalfBytes / 16) + k * (16 * 128 / 16));
    }
  }
  wgmma_commit();
}

/// Applies a mask of keys, which is the same for all rows.
template <class Tile>
__device__ __forceinline__ void apply_key_mask(const unsigned char* shared, float scale,
                                               Scores<Tile>& scores, int lane) {
  const auto* mask = reinterpret_cast<const float2*>(shared) + (lane & 3);
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 m = mask[4 * j];
    float(&s)[4] = scores[0][j];
    if constexpr (Tile::kAdds) {
      s[0] = fmaf(s[0], scale, m.x), s[1] = fmaf(s[1], scale, m.y);
      s[2] = fmaf(s[2], scale, m.x), s[3] = fmaf(s[3], scale, m.y);
    } else {
      s[0] = fminf(s[0], m.x), s[1] = fminf(s[1], m.y);
      s[2] = fminf(s[2], m.x), s[3] = fminf(s[3], m.y);
    }
  }
}

/// Applies a mask of pairs, of which the warp's rows start at `warp_row` of the swizzled tile.
template <class Tile>
__device__ __forceinline__ void apply_pair_mask(const unsigned char* shared, float scale,
                                                Scores<Tile>& scores, int warp_row, int lane) {
  using T = typename Tile::T;
  constexpr float kLog2E = 1.4426950408889634F;
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const unsigned char* row = shared + (warp_row + 8 * h + g) * 128;
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
      float& x = scores[0][j][2 * h];
      float& y = scores[0][j][2 * h + 1];
      if constexpr (Tile::kAdds) {
        const auto* pair = reinterpret_cast<const T*>(row + j / 8 * kHalfBytes +
                                                      (((j % 8) ^ g) << 4) + 4 * t);
        x = fmaf(x, scale, widen(pair[0]) * kLog2E);
        y = fmaf(y, scale, widen(pair[1]) * kLog2E);
      } else {
        const auto pair = *reinterpret_cast<const std::uint16_t*>(
            row + (((j / 2) ^ g) << 4) + 8 * (j % 2) + 2 * t);
        if ((pair & 0xffU) == 0) x = -INFINITY;
        if ((pair >> 8) == 0) y = -INFINITY;
      }
    }
  }
}

/// Applies the mask of the tile in `stage`, and hides keys past the end or after the query. The warp's
/// first query is `row0`.
template <class Tile>
__device__ __forceinline__ void hide(const Params& p, const Layout<Tile>& layout, int stage,
                                     int key0, Scores<Tile>& scores, int row0, int lane) {
  const unsigned char* mask = layout.shared + Tile::kMasks + stage * Tile::kMaskBytes;
  if constexpr (Tile::kMasksKeys) apply_key_mask<Tile>(mask, p.scale, scores, lane);
  if constexpr (Tile::kMasksPairs) {
    apply_pair_mask<Tile>(mask, p.scale, scores, row0 % kRows, lane);
  }
  const int keys = static_cast<int>(p.attention.keys);
  const bool is_causal = p.attention.is_causal;
  if (key0 + kKeys <= keys && (!is_causal || key0 + kKeys - 1 <= row0)) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + 8 * h + (lane >> 2);
    const int seen = (is_causal ? min(keys, row + 1) : keys) - key0 - 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
      if (8 * j >= seen) scores[0][j][2 * h] = -INFINITY;
      if (8 * j + 1 >= seen) scores[0][j][2 * h + 1] = -INFINITY;
    }
  }
}

/// Raises the maxima where they lag; `factor` is what earlier sums are then multiplied by. False: by 1.
template <class Tile>
__device__ __forceinline__ bool raise_tops(OnlineSoftmax<1>& state, const Scores<Tile>& scores,
                                           float scale, float (&factor)[2]) {
  float top[2];
  bool grew = false;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float highest = scores[0][0][2 * h];
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
      highest = fmaxf(highest, fmaxf(scores[0][j][2 * h], scores[0][j][2 * h + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 2));
    top[h] = fmaxf(state.top[0][h], highest * scale);
    grew |= top[h] > state.top[0][h] + kMaxLag;
    factor[h] = 1.0F;
  }
  if (!__any_sync(kFullWarp, grew)) return false;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    factor[h] = exp2_approximate(state.top[0][h] - (top[h] == -INFINITY ? 0.0F : top[h]));
    state.top[0][h] = top[h];
    state.sum[0][h] *= factor[h];
  }
  return true;
}

template <class Tile>
__device__ __forceinline__ void pack(const Scores<Tile>& scores, Weights<Tile>& weights) {
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      weights[0][j][h] =
          pack_floats<typename Tile::T>(scores[0][j][2 * h], scores[0][j][2 * h + 1]);
    }
  }
}

/// The consumers queue their products in turn, so that one's are under way while the other computes
/// exponentials. Group 0 comes first: group 1 ends a turn before.
[[maybe_unused]] __device__ __forceinline__ void wait_for_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
[[maybe_unused]] __device__ __forceinline__ void end_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
}

/// A consumer warp's walk over the tiles of an item.
template <class Tile>
__device__ __forceinline__ void add_tiles(const Params& p, const Layout<Tile>& layout,
                                          const AllRows<Tile>& query,
                                          RingPosition<Tile::kStages>& ring, int tiles, int row0,
                                          int group, int lane, OnlineSoftmax<1>& state, Sums<Tile>& sums) {
  // Additive masks bring scores to units of log2 at once.
  const float scale = Tile::kAdds ? 1.0F : p.scale;
  Scores<Tile> scores;
  Weights<Tile> weights;
  float factor[2];
  const auto finish_scores = [&](int stage) {
    wgmma_settle(part(scores[0], 0));
    wgmma_settle(part(scores[0], 1));
    hide<Tile>(p, layout, stage, layout.start(stage), scores, row0, lane);
    __syncwarp();
    barrier_arrive_for_warp(layout.key_empty(stage), lane);
    const bool grew = raise_tops<Tile>(state, scores, scale, factor);
    exponentiate(state, scores, scale);
    return grew;
  };
  const auto settle_sums = [&](int stage) {
    wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < Tile::kHalves; ++half) wgmma_settle(part(sums[0], half));
    wgmma_settle(weights[0]);
    barrier_arrive_for_warp(layout.value_empty(stage), lane);
  };

  barrier_wait(layout.key_full(ring.stage), ring.parity);
  start_scores<Tile>(scores, query, layout.keys(ring.stage));
  wgmma_wait<0>();
  finish_scores(ring.stage);
  pack<Tile>(scores, weights);
  for (int i = 1; i < tiles; ++i) {
    const RingPosition<Tile::kStages> last = ring;
    ring.advance();
    barrier_wait(layout.key_full(ring.stage), ring.parity);
    wait_for_turn(group);
    start_scores<Tile>(scores, query, layout.keys(ring.stage));
    barrier_wait(layout.value_full(last.stage), last.parity);
    start_sums<Tile>(sums, weights, layout.values(last.stage));
    end_turn(group);
    wgmma_wait<1>();
    const bool grew = finish_scores(ring.stage);
    settle_sums(last.stage);
    if (grew) {
#pragma unroll
      for (int d = 0; d < kHeadTiles<Tile>; ++d) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[0][d][c] *= factor[c / 2];
      }
    }
    pack<Tile>(scores, weights);
  }
  barrier_wait(layout.value_full(ring.stage), ring.parity);
  start_sums<Tile>(sums, weights, layout.values(ring.stage));
  settle_sums(ring.stage);
  ring.advance();
}

/// A consumer warp, one of eight: its 16 rows of every item.
template <class Tile>
__device__ __forceinline__ void add_items(const Params& p, const Layout<Tile>& layout, int warp,
                                          int lane) {
  using T = typename Tile::T;
  const AttentionParams& attention = p.attention;
  RingPosition<Tile::kStages> ring;
  std::uint32_t turn = 0;
  if (warp / 4 == 1) end_turn(1);
  for (int index = static_cast<int>(blockIdx.x); index < p.items; index += gridDim.x, ++turn) {
    barrier_wait(layout.item_full(), turn & 1U);
    const Item item = layout.item();
    const int tiles = __shfl_sync(kFullWarp, item.tiles, 0);
    AllRows<Tile> query;
    const int q = 16 * warp + (lane & 15);
#pragma unroll
    for (int k = 0; k < Tile::kHead / 16; ++k) {
      const int chunk = 2 * (k % 4) + (lane >> 4);
      load_matrices(query[k], layout.address + k / 4 * kHalfBytes + q * 128 +
                                  ((chunk ^ (q & 7)) << 4));
    }
    __syncwarp();
    barrier_arrive_for_warp(layout.item_empty(), lane);

    const int row0 = item.row_block * kRows + 16 * warp;
    OnlineSoftmax<1> state{{{-INFINITY, -INFINITY}}, {{0.0F, 0.0F}}};
    Sums<Tile> sums;
#pragma unroll
    for (int d = 0; d < kHeadTiles<Tile>; ++d) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[0][d][c] = 0.0F;
    }
    if (tiles > 0) add_tiles<Tile>(p, layout, query, ring, tiles, row0, warp / 4, lane, state, sums);
    float factor[1][2];
    finish_softmax<1>(attention, state, item.batch, row0, lane, factor);
    const AttentionOperand& strides = attention.output_strides;
    T* output = static_cast<T*>(attention.output) + batch_offset(attention, strides, item.batch) +
                row0 * strides.row;
    write_rows<Tile>({output, strides.row, strides.column, attention.length - row0,
                      static_cast<int>(attention.head_v)},
                     sums, factor, layout.shared + Tile::kResults, 16 * warp, lane);
  }
}

template <class Tile>
__global__ void __launch_bounds__(kBlockThreads, 1)
    attention_wgmma_kernel(const __grid_constant__ Params p) {
  if constexpr (kHasWgmma) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Layout<Tile> layout(shared);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) {
      for (int stage = 0; stage < Tile::kStages; ++stage) {
        barrier_init(layout.key_full(stage), 1);
        barrier_init(layout.value_full(stage), 1);
        barrier_init(layout.key_empty(stage), kConsumerWarps * kWarpArrivals);
        barrier_init(layout.value_empty(stage), kConsumerWarps * kWarpArrivals);
      }
      barrier_init(layout.item_full(), 1);
      barrier_init(layout.item_empty(), kConsumerWarps * kWarpArrivals);
      fence_barrier_init();
    }
    __syncthreads();
    const int warp = __shfl_sync(kFullWarp, thread / 32, 0);
    if (warp < 4) {
      release_registers<40>();
      if (thread == 0) copy_items<Tile>(p, layout);
    } else {
      take_registers<232>();
      add_items<Tile>(p, layout, warp - 4, thread % 32);
    }
  }
}

constexpr int kPrepareThreads = 1024;

/// One block for each mask of keys: its values as the kernel above adds or compares them, and the tiles
/// that show anything.
template <class T>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_mask_kernel(const __grid_constant__ AttentionParams p, KeyMask mask) {
  __shared__ unsigned shows[kPrepareThreads / 32];
  const int number = static_cast<int>(blockIdx.x);
  std::int64_t offset = 0;
  int rest = number;
  for (int axis = p.batch_axes - 1; axis >= 0; --axis) {
    if (p.mask_strides.batch[axis] == 0) continue;
    const int size = static_cast<int>(p.batch_sizes[axis]);
    offset += rest % size * p.mask_strides.batch[axis];
    rest /= size;
  }
  constexpr float kLog2E = 1.4426950408889634074F;
  float* values = mask.values + static_cast<std::int64_t>(number) * mask.tiles * kKeys;
  int* list = mask.lists + static_cast<std::int64_t>(number) * (mask.tiles + 1);
  const int padded = mask.tiles * kKeys;
  const int thread = static_cast<int>(threadIdx.x);
  int count = 0;
  for (int base = 0; base < padded; base += kPrepareThreads) {
    const int key = base + thread;
    float value = -INFINITY;
    if (key < p.keys) {
      const std::int64_t at = offset + key * p.mask_strides.column;
      if (p.mask_kind == AttentionMask::boolean) {
        value = static_cast<const bool*>(p.mask)[at] ? INFINITY : -INFINITY;
      } else {
        value = static_cast<float>(widen(static_cast<const T*>(p.mask)[at])) * kLog2E;
      }
    }
    if (key < padded) values[key] = value;
    const unsigned lanes = __ballot_sync(kFullWarp, value != -INFINITY);
    if (thread % 32 == 0) shows[thread / 32] = lanes;
    __syncthreads();
    if (thread == 0) {
      for (int i = 0; i < kPrepareThreads / kKeys; ++i) {
        const unsigned* tile = shows + 4 * i;
        if ((tile[0] | tile[1] | tile[2] | tile[3]) != 0) list[++count] = base / kKeys + i;
      }
    }
    __syncthreads();
  }
  if (thread == 0) list[0] = count;
}

/// The map of one operand, and what batch indices count for in it.
CUtensorMap map_of(const void* data, DType dtype, const AttentionParams& p,
                   const AttentionOperand& strides, std::int64_t rows, std::int64_t columns,
                   int (&steps)[kMapAxes]) {
  const auto stride_of = [](std::int64_t size, std::int64_t stride) {
    return size > 1 ? stride : std::int64_t{16};
  };
  std::int64_t sizes[5] = {columns, rows, 1, 1, 1};
  std::int64_t apart[4] = {stride_of(rows, strides.row), 16, 16, 16};
  for (int axis = 0; axis < p.batch_axes; ++axis) {
    steps[axis] = strides.batch[axis] != 0 ? 1 : 0;
    if (steps[axis] == 0) continue;
    sizes[2 + axis] = p.batch_sizes[axis];
    apart[1 + axis] = strides.batch[axis];
  }
  return make_tensor_map(data, dtype, sizes, apart, 128);
}

template <class Tile>
void launch_tile(const Params& p, Stream stream) {
  const int multiprocessors = device_limits(stream.device).multiprocessors;
  launch(stream, "attention_wgmma", attention_wgmma_kernel<Tile>,
         std::min(multiprocessors, p.items), kBlockThreads, Tile::kSharedBytes, p);
}

template <class T, int kHead>
void launch_head(const Params& p, Stream stream) {
  using enum MaskForm;
  const bool of_keys = p.attention.mask_strides.row == 0;
  switch (p.attention.mask_kind) {
    case AttentionMask::none: return launch_tile<AttentionWgmmaTile<T, kHead, none>>(p, stream);
    case AttentionMask::boolean:
      if (of_keys) return launch_tile<AttentionWgmmaTile<T, kHead, boolean_keys>>(p, stream);
      return launch_tile<AttentionWgmmaTile<T, kHead, boolean>>(p, stream);
    case AttentionMask::additive:
      if (of_keys) return launch_tile<AttentionWgmmaTile<T, kHead, additive_keys>>(p, stream);
      if constexpr (kHead == 64) {
        return launch_tile<AttentionWgmmaTile<T, kHead, additive>>(p, stream);
      }
  }
}

template <class T>
void launch_type(const Params& p, std::int64_t masks, Stream stream) {
  if (masks > 0) {
    launch(stream, "attention_key_mask", prepare_mask_kernel<T>, masks, kPrepareThreads, 0,
           p.attention, p.mask);
  }
  if (std::max(p.attention.head, p.attention.head_v) <= 64) return launch_head<T, 64>(p, stream);
  launch_head<T, 128>(p, stream);
}

}  // namespace

std::size_t flash_wgmma_workspace(const AttentionParams& p) {
  if (p.mask_kind == AttentionMask::none || p.mask_strides.row != 0) return 0;
  std::int64_t masks = 1;
  for (int axis = 0; axis < p.batch_axes; ++axis) {
    if (p.mask_strides.batch[axis] != 0) masks *= p.batch_sizes[axis];
  }
  const std::int64_t tiles = ceil_div(p.keys, kKeys);
  return static_cast<std::size_t>(masks * (tiles * (kKeyMaskBytes + 4) + 4));
}

void launch_flash_wgmma(const AttentionParams& attention, DType dtype, void* workspace,
                        Stream stream) {
  Params p{};
  p.attention = attention;
  p.query = map_of(attention.query, dtype, attention, attention.query_strides, attention.length,
                   attention.head, p.query_steps);
  p.key = map_of(attention.key, dtype, attention, attention.key_strides, attention.keys,
                 attention.head, p.key_steps);
  p.value = map_of(attention.value, dtype, attention, attention.value_strides, attention.keys,
                   attention.head_v, p.value_steps);
  p.row_blocks = static_cast<int>(ceil_div(attention.length, kRows));
  p.items = static_cast<int>(attention.batches) * p.row_blocks;
  p.scale = static_cast<float>(attention.scale_log2);
  p.mask.tiles = static_cast<int>(ceil_div(attention.keys, kKeys));
  const bool has_mask = attention.mask_kind != AttentionMask::none;
  const bool has_pairs = has_mask && attention.mask_strides.row != 0;
  if (has_pairs) {
    const bool is_bool = attention.mask_kind == AttentionMask::boolean;
    p.pairs = map_of(attention.mask, is_bool ? DType::boolean : dtype, attention,
                     attention.mask_strides, attention.length, attention.keys, p.pair_steps);
  }
  std::int64_t masks = has_mask && !has_pairs ? 1 : 0;
  for (int axis = kMapAxes - 1; axis >= 0; --axis) {
    const bool exists = axis < attention.batch_axes;
    p.batch_sizes[axis] = exists ? static_cast<int>(attention.batch_sizes[axis]) : 1;
    if (!exists || masks == 0 || attention.mask_strides.batch[axis] == 0) continue;
    p.mask.batch_steps[axis] = masks;
    masks *= attention.batch_sizes[axis];
  }
  p.mask.values = static_cast<float*>(workspace);
  p.mask.lists = reinterpret_cast<int*>(p.mask.values + masks * p.mask.tiles * kKeys);
  if (dtype == DType::float16) return launch_type<Half>(p, masks, stream);
  launch_type<BFloat16>(p, masks, stream);
}

}  // namespace tenon::cuda
