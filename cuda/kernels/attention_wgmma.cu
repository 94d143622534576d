// Scaled dot-product attention by wgmma, for heads up to 128, with or without causality and a mask. The
// order of a row's work is that of FlashAttention-3 (J. Shah et al., 2024). A block stays on its
// multiprocessor and computes item after item, an item being 128 queries of one batch:
//
//   warpgroup 0       one thread starts the copies: an item's queries, and tiles of 128 keys to a ring
//   warpgroups 1, 2   hold 64 queries each in registers, as A fragments, and walk over the tiles
//
//   queued      S(i+1) = Q·K(i+1)   O += P(i)·V(i)
//   meanwhile                       P(i+1) of S(i+1)
//
// A mask of keys comes as KeyTiles: tiles that it hides cost nothing, and those that it shows all of are
// as without a mask. One of (queries, keys) is copied tile by tile. Batches have at most three axes;
// those without stride have size 1 in the maps.
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
constexpr int kKeys = kWgmmaKeys;
constexpr int kBlockThreads = 384;
constexpr int kConsumerWarps = 8;
constexpr int kMapAxes = kWgmmaBatchAxes;
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
  static constexpr int kMaskStages = kHead == 128 && kMask == MaskForm::additive ? 1 : kStages;

  static constexpr int kTileBytes = kHalves * kHalfBytes;  // of queries, keys, values or results
  static constexpr int kKeyTiles = kTileBytes;
  static constexpr int kValueTiles = kKeyTiles + kStages * kTileBytes;
  static constexpr int kResults = kValueTiles + kStages * kTileBytes;
  static constexpr int kMasks = kResults + kTileBytes;
  static constexpr int kMaskBytes = kMask == MaskForm::additive  ? 2 * kHalfBytes
                                    : kMask == MaskForm::boolean ? kHalfBytes
                                    : kMasksKeys                 ? kKeyMaskBytes
                                                                 : 0;
  static constexpr int kStarts = kMasks + kMaskStages * kMaskBytes;  // an int per stage
  static constexpr int kItem = kStarts + 16;
  static constexpr int kBarriers = kItem + 16;
  static constexpr int kSharedBytes = kBarriers + (6 * kStages + 2) * kBarrierBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

namespace {

/// What the consumers must know of an item.
struct Item {
  int batch, row_block, tiles;
};

struct Params {
  CUtensorMap query, key, value, pairs;  // the last: a mask of pairs
  AttentionParams attention;
  KeyTiles mask;
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
struct SharedLayout {
  unsigned char* shared;
  std::uint32_t address;

  __device__ __forceinline__ explicit SharedLayout(unsigned char* shared_)
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
  /// Of masks of pairs.
  __device__ __forceinline__ std::uint32_t mask_full(int stage) const {
    return barrier(4 * Tile::kStages + stage);
  }
  __device__ __forceinline__ std::uint32_t mask_empty(int stage) const {
    return barrier(5 * Tile::kStages + stage);
  }
  __device__ __forceinline__ std::uint32_t item_full() const { return barrier(6 * Tile::kStages); }
  __device__ __forceinline__ std::uint32_t item_empty() const {
    return barrier(6 * Tile::kStages + 1);
  }
  __device__ __forceinline__ std::uint32_t keys(int stage) const {
    return address + Tile::kKeyTiles + stage * Tile::kTileBytes;
  }
  __device__ __forceinline__ std::uint32_t values(int stage) const {
    return address + Tile::kValueTiles + stage * Tile::kTileBytes;
  }
  __device__ __forceinline__ int mask(int stage) const {  // an offset
    return Tile::kMasks + stage * Tile::kMaskBytes;
  }
  /// The first key of the tile in a stage, plus 1 where the mask changes nothing there.
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

/// Starts the copy of a mask's (128 queries, 128 keys).
template <class Tile>
__device__ __forceinline__ void copy_pairs(const Params& p, const SharedLayout<Tile>& layout,
                                           int stage, int row, int key0,
                                           const int (&batch)[kMapAxes]) {
  barrier_expect(layout.mask_full(stage), Tile::kMaskBytes);
#pragma unroll
  for (int part = 0; part < Tile::kMaskBytes / kHalfBytes; ++part) {
    const int at[5] = {key0 + 64 * part, row, batch[0] * p.pair_steps[0],
                       batch[1] * p.pair_steps[1], batch[2] * p.pair_steps[2]};
    copy_tensor_async(layout.address + layout.mask(stage) + part * kHalfBytes, p.pairs, at,
                      layout.mask_full(stage));
  }
}

/// What the copying thread must know of an item.
struct Plan {
  Item item;
  int at[kMapAxes];     // along the batch axes
  int4 list;            // of KeyTiles: how many tiles of keys, and where the first three start
  const int* entries;   // all of them
  const float* values;  // of the mask of keys
};

/// Where tile number i of the list starts.
template <class Tile>
__device__ __forceinline__ int start_of(const Plan& plan, int i) {
  const int4& list = plan.list;
  return i == 0 ? list.y : i == 1 ? list.z : i == 2 ? list.w : plan.entries[i];
}

template <class Tile>
__device__ __forceinline__ Plan plan_of(const Params& p, int index) {
  Plan plan{};
  const int batches = static_cast<int>(p.attention.batches);
  // Causal items get shorter from block to block, so that the last ones to start end soon.
  const bool is_causal = p.attention.is_causal;
  const int batch = is_causal ? index % batches : index / p.row_blocks;
  const int row_block =
      is_causal ? p.row_blocks - 1 - index / batches : index - batch * p.row_blocks;
  int rest = batch;
#pragma unroll
  for (int axis = kMapAxes - 1; axis >= 0; --axis) {
    plan.at[axis] = rest % p.batch_sizes[axis];
    rest /= p.batch_sizes[axis];
  }
  const int seen = static_cast<int>(visible_keys(p.attention, (row_block + 1) * kRows));
  int tiles = (seen + kKeys - 1) / kKeys;
  if constexpr (Tile::kMasksKeys) {
    std::int64_t number = 0;
    for (int axis = 0; axis < kMapAxes; ++axis) {
      number += plan.at[axis] * p.mask.batch_steps[axis];
    }
    plan.values = p.mask.values + number * p.mask.tiles * kKeys;
    plan.entries = p.mask.lists + number * p.mask.list_size + 1;
    plan.list = *reinterpret_cast<const int4*>(plan.entries - 1);
    tiles = min(tiles, plan.list.x);
    while (is_causal && tiles > 0 && (start_of<Tile>(plan, tiles - 1) & ~1) >= seen) --tiles;
  }
  plan.item = {batch, row_block, tiles};
  return plan;
}

/// The copying thread: everything that this block's items need.
template <class Tile>
__device__ __forceinline__ void copy_items(const Params& p, const SharedLayout<Tile>& layout) {
  RingPosition<Tile::kStages> ring;
  RingPosition<Tile::kMaskStages> masks;
  std::uint32_t turn = 0;
  const int step = static_cast<int>(gridDim.x);
  Plan next = plan_of<Tile>(p, static_cast<int>(blockIdx.x));
  for (int index = static_cast<int>(blockIdx.x); index < p.items; index += step, ++turn) {
    const Plan plan = next;
    // Its list comes from memory while this item's tiles are copied.
    if (index + step < p.items) next = plan_of<Tile>(p, index + step);
    const auto& [batch, row_block, tiles] = plan.item;
    const auto& at = plan.at;
    barrier_wait(layout.item_empty(), (turn & 1U) ^ 1U);
    layout.item() = plan.item;
    barrier_expect(layout.item_full(), Tile::kTileBytes);
    copy_rows<Tile>(layout.address, p.query, row_block * kRows, at, p.query_steps,
                    layout.item_full());
    for (int i = 0; i < tiles; ++i) {
      const int start = Tile::kMasksKeys ? start_of<Tile>(plan, i) : i * kKeys;
      const int key0 = start & ~1;
      const bool has_values = Tile::kMasksKeys && start == key0;
      const std::uint32_t full = layout.key_full(ring.stage);
      barrier_wait(layout.key_empty(ring.stage), ring.parity ^ 1U);
      layout.start(ring.stage) = start;
      barrier_expect(full, Tile::kTileBytes + (has_values ? kKeyMaskBytes : 0));
      copy_rows<Tile>(layout.keys(ring.stage), p.key, key0, at, p.key_steps, full);
      if (has_values) {
        copy_bytes_async(layout.address + layout.mask(ring.stage), plan.values + key0,
                         kKeyMaskBytes, full);
      }
      if constexpr (Tile::kMasksPairs) {
        barrier_wait(layout.mask_empty(masks.stage), masks.parity ^ 1U);
        copy_pairs<Tile>(p, layout, masks.stage, row_block * kRows, key0, at);
        masks.advance();
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

/// Applies a mask of keys, which is the same for all rows. Additive masks bring scores to units of log2.
template <class Tile>
__device__ __forceinline__ void apply_key_mask(const unsigned char* shared, float scale,
                                               Scores<Tile>& scores, int lane) {
  const auto* mask = reinterpret_cast<const float2*>(shared) + (lane & 3);
  const auto apply = [scale](float score, float value) {
    return Tile::kAdds ? fmaf(score, scale, value) : fminf(score, value);
  };
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 m = mask[4 * j];
    float(&s)[4] = scores[0][j];
    s[0] = apply(s[0], m.x), s[1] = apply(s[1], m.y);
    s[2] = apply(s[2], m.x), s[3] = apply(s[3], m.y);
  }
}

/// The same of pairs, of which the warp's rows start at `warp_row` of the swizzled tile.
template <class Tile>
__device__ __forceinline__ void apply_pair_mask(const unsigned char* shared, float scale,
                                                Scores<Tile>& scores, int warp_row, int lane) {
  using T = typename Tile::T;
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
        x = fmaf(x, scale, mask_in_log2(widen(pair[0])));
        y = fmaf(y, scale, mask_in_log2(widen(pair[1])));
      } else {
        const auto pair = *reinterpret_cast<const std::uint16_t*>(
            row + (((j / 2) ^ g) << 4) + 8 * (j % 2) + 2 * t);
        if ((pair & 0xffU) == 0) x = -INFINITY;
        if ((pair >> 8) == 0) y = -INFINITY;
      }
    }
  }
}

/// Hides keys past the end or after the query. The warp's first query is `row0`.
template <class Tile>
__device__ __forceinline__ void hide(const Params& p, int key0, Scores<Tile>& scores, int row0,
                                     int lane) {
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

/// Which stages come next.
template <class Tile>
struct Rings {
  RingPosition<Tile::kStages> tiles;
  RingPosition<Tile::kMaskStages> masks;
};

/// A consumer warp's walk over the tiles of an item.
template <class Tile>
__device__ __forceinline__ void add_tiles(const Params& p, const SharedLayout<Tile>& layout,
                                          const AllRows<Tile>& query, Rings<Tile>& rings, int tiles,
                                          int row0, int group, int lane, OnlineSoftmax<1>& state,
                                          Sums<Tile>& sums) {
  RingPosition<Tile::kStages>& ring = rings.tiles;
  Scores<Tile> scores;
  Weights<Tile> weights;
  float factor[2];
  const auto finish_scores = [&](int stage) {
    wgmma_settle(part(scores[0], 0));
    wgmma_settle(part(scores[0], 1));
    const int start = __shfl_sync(kFullWarp, layout.start(stage), 0);
    const bool masks = Tile::kMasksPairs || (Tile::kMasksKeys && start % 2 == 0);
    if (Tile::kMasksKeys && masks) {
      apply_key_mask<Tile>(layout.shared + layout.mask(stage), p.scale, scores, lane);
    }
    if constexpr (Tile::kMasksPairs) {
      RingPosition<Tile::kMaskStages>& masks = rings.masks;
      barrier_wait(layout.mask_full(masks.stage), masks.parity);
      apply_pair_mask<Tile>(layout.shared + layout.mask(masks.stage), p.scale, scores,
                            row0 % kRows, lane);
      __syncwarp();
      barrier_arrive_for_warp(layout.mask_empty(masks.stage), lane);
      masks.advance();
    }
    hide<Tile>(p, start & ~1, scores, row0, lane);
    __syncwarp();
    barrier_arrive_for_warp(layout.key_empty(stage), lane);
    const float scale = Tile::kAdds && masks ? 1.0F : p.scale;
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
__device__ __forceinline__ void add_items(const Params& p, const SharedLayout<Tile>& layout,
                                          int warp, int lane) {
  using T = typename Tile::T;
  const AttentionParams& attention = p.attention;
  Rings<Tile> rings;
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
    if (tiles > 0) {
      add_tiles<Tile>(p, layout, query, rings, tiles, row0, warp / 4, lane, state, sums);
    }
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
    const SharedLayout<Tile> layout(shared);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) {
      for (int stage = 0; stage < Tile::kStages; ++stage) {
        barrier_init(layout.key_full(stage), 1);
        barrier_init(layout.value_full(stage), 1);
        barrier_init(layout.key_empty(stage), kConsumerWarps * kWarpArrivals);
        barrier_init(layout.value_empty(stage), kConsumerWarps * kWarpArrivals);
        barrier_init(layout.mask_full(stage), 1);
        barrier_init(layout.mask_empty(stage), kConsumerWarps * kWarpArrivals);
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
      return launch_tile<AttentionWgmmaTile<T, kHead, additive>>(p, stream);
  }
}

template <class T>
void launch_type(const Params& p, Stream stream) {
  if (std::max(p.attention.head, p.attention.head_v) <= 64) return launch_head<T, 64>(p, stream);
  launch_head<T, 128>(p, stream);
}

}  // namespace

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
  for (int axis = 0; axis < kMapAxes; ++axis) {
    p.batch_sizes[axis] =
        axis < attention.batch_axes ? static_cast<int>(attention.batch_sizes[axis]) : 1;
  }
  p.row_blocks = static_cast<int>(ceil_div(attention.length, kRows));
  p.items = static_cast<int>(attention.batches) * p.row_blocks;
  p.scale = static_cast<float>(attention.scale_log2);
  if (attention.mask_kind != AttentionMask::none) {
    if (attention.mask_strides.row == 0) {
      p.mask = launch_key_tiles(attention, dtype, workspace, stream);
    } else {
      const bool is_bool = attention.mask_kind == AttentionMask::boolean;
      p.pairs = map_of(attention.mask, is_bool ? DType::boolean : dtype, attention,
                       attention.mask_strides, attention.length, attention.keys, p.pair_steps);
    }
  }
  if (dtype == DType::float16) return launch_type<Half>(p, stream);
  launch_type<BFloat16>(p, stream);
}

}  // namespace tenon::cuda
