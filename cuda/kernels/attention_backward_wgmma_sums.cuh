// dQ, or dK and dV, of attention by wgmma, for heads up to 128; the sums and their order are those of
// attention_backward_mma.cuh. A block stays on its multiprocessor and computes item after item, an item
// being 128 rows of one batch:
//
//   warpgroup 0       copies an item's own rows, and tiles of 64 rows of the other side to a ring
//   warpgroups 1, 2   have 64 own rows each, as A operands, and walk over the tiles
//
// Keys that several batches share are an item for each of these in turn, whose sums go on. Heads above 64
// take tiles of two parts of 64 columns.
//
// Products of a warpgroup are queued so that the tensor cores have work while scores are finished:
//
//   registers   P(i)             dS(i)                           P(i+1)
//   queued           dV(i)             S(i+1)  dK(i)  dP(i+1)            dV(i+1)
//
// P waits for S alone, dS for dP; dQ takes the place of dK, and queries have no dV. Wide keys, whose sums
// fill half of the registers, have room for the fragments of one product:
//
//   registers   P(i)                     dS(i)                        P(i+1)
//   queued            dP(i)  dV(i)               S(i+1)  dK(i)                dP(i+1)
#pragma once

#include "cuda/kernels/attention_backward_scores.cuh"
#include "cuda/kernels/attention_backward_wgmma.cuh"

namespace tenon::cuda {

/// A warpgroup's own rows as an A operand: fragments, or the descriptor of a tile.
template <class Tile>
using OwnRows = std::conditional_t<Tile::kTight, std::uint64_t, AllRows<Tile>>;

/// The registers of a consumer warp. The first operand meets Q or K, the second dO or V.
template <class Tile>
struct Accumulated {
  OwnRows<Tile> first, second;
  Sums<Tile> d_first, d_second;      // dQ; or dK and dV
  float scale;                       // of scores, to powers of two
  RowValues<Tile> lse, delta;        // of own queries
  Scores<Tile> score, d_weight;      // under way, or P and dO·Vᵀ
  Weights<Tile> kept, d_score;       // A fragments of products that are under way
  RingPosition<Tile::kStages> ring;  // of the tile whose scores come next
};

template <class Tile>
__device__ __forceinline__ void clear_sums(Sums<Tile>& sums) {
#pragma unroll
  for (auto& fragment : sums[0]) {
#pragma unroll
    for (float& sum : fragment) sum = 0;
  }
}

/// What step k along the head is away from the first in a tile of kTileRows rows, in units of a descriptor.
template <int kTileRows>
__device__ __forceinline__ constexpr std::uint64_t head_step(int k) {
  constexpr int kPartSteps = kPartColumns / 16;
  return static_cast<std::uint64_t>(k / kPartSteps * (kTileRows * kPartRowBytes / 16) +
                                    k % kPartSteps * (32 / 16));
}

/// 64 columns of a warp's sums, the accumulators of one product.
template <class Tile>
__device__ __forceinline__ float (&part_of(Sums<Tile>& sums, int part))[8][4] {
  return reinterpret_cast<float(&)[8][4]>(sums[0][8 * part]);
}

/// scores = own rows · tileᵀ, started. Zeros that were written to the scores first would make the
/// compiler wait for earlier products.
template <class Tile>
__device__ __forceinline__ void start_scores(Scores<Tile>& scores, const OwnRows<Tile>& own,
                                             std::uint64_t tile) {
  using T = typename Tile::T;
  wgmma_fence();
  if constexpr (!Tile::kTight) {
    wgmma_m64n64k16<T, false, false>(scores[0], own[0][0], tile);
#pragma unroll
    for (int k = 1; k < kHeadSteps<Tile>; ++k) {
      wgmma_m64n64k16<T, false, true>(scores[0], own[k][0], tile + head_step<kStageRows>(k));
    }
  } else {
    wgmma_shared<T, kStageRows, false, false>(scores[0], own, tile);
#pragma unroll
    for (int k = 1; k < kHeadSteps<Tile>; ++k) {
      wgmma_shared<T, kStageRows, false, true>(scores[0], own + head_step<Tile::kRows>(k),
                                               tile + head_step<kStageRows>(k));
    }
  }
  wgmma_commit();
}

/// sums += weights · tile, started.
template <class Tile>
__device__ __forceinline__ void start_sums(Sums<Tile>& sums, const Weights<Tile>& weights,
                                           std::uint64_t tile) {
  constexpr int kStep = 16 * kPartRowBytes / 16;  // 16 rows
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kStageRows / 16; ++k) {
    const std::uint32_t a[4] = {weights[0][2 * k][0], weights[0][2 * k][1],
                                weights[0][2 * k + 1][0], weights[0][2 * k + 1][1]};
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) {
      wgmma_m64n64k16<typename Tile::T, true, true>(
          part_of<Tile>(sums, part), a, tile + part * (Tile::kOtherPart / 16) + k * kStep);
    }
  }
  wgmma_commit();
}

/// Brings scores to units of log2, and adds the mask of pairs at `mask`.
template <class Tile>
__device__ __forceinline__ void add_pair_mask(Scores<Tile>& score, float scale, std::uint32_t mask,
                                              int warp, int lane) {
  constexpr float kLog2E = 1.4426950408889634F;
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; j += 2) {
    std::uint32_t pairs[4];  // of 8 rows each: tile j, the rows after them; tile j + 1
    if constexpr (Tile::kKeys) {
      const int query = 8 * (j + (lane >> 4)) + (lane & 7);
      const int chunk = 2 * (warp % 4) + (lane >> 3) % 2;
      load_matrices_transposed(
          pairs, mask + warp / 4 * Tile::kOtherPart + swizzled_offset<kStageRows>(query, chunk));
    } else {
      load_matrices(pairs, mask + swizzled_offset<Tile::kRows>(warp * Tile::kWarpRows + (lane & 15),
                                                               j + (lane >> 4)));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 added = unpack_floats<typename Tile::T>(pairs[i]);
      float& x = score[0][j + i / 2][2 * (i % 2)];
      float& y = score[0][j + i / 2][2 * (i % 2) + 1];
      x = fmaf(added.x, kLog2E, x * scale);
      y = fmaf(added.y, kLog2E, y * scale);
    }
  }
}

/// P of the tile in a stage.
template <class Tile>
__device__ __forceinline__ void finish_probabilities(const AttentionBackwardParams& params,
                                                     const SharedLayout<Tile>& layout,
                                                     Accumulated<Tile>& a, const BatchMask& mask,
                                                     int stage, std::int64_t row0,
                                                     std::int64_t other, bool edge, int warp,
                                                     int lane) {
  if constexpr (Tile::kPairs) {
    const std::uint32_t pairs = layout.address + stage + Tile::kPairMask;
    add_pair_mask<Tile>(a.score, a.scale, pairs, warp, lane);
  }
  const float scale = Tile::kPairs ? 1.0F : a.scale;
  if constexpr (Tile::kKeys) {
    const unsigned char* start = layout.shared + stage;
    finish_key_probabilities<Tile>(
        params, scale, a.score, reinterpret_cast<const float*>(start + Tile::kStatistics),
        start + Tile::kBits + warp * Tile::kWarpRows / 8, mask, row0, other, lane, edge);
  } else {
    finish_query_probabilities<Tile>(params, scale, a.lse, a.score, mask, row0, other, lane, edge);
  }
}

/// A fragments of dS of the tile in a stage.
template <class Tile>
__device__ __forceinline__ void finish_weights(const SharedLayout<Tile>& layout,
                                               Accumulated<Tile>& a, int stage, int warp,
                                               int lane) {
  const unsigned char* start = layout.shared + stage;
  if constexpr (Tile::kKeys) {
    finish_key_weights<Tile>(a.score, a.d_weight,
                             reinterpret_cast<const float*>(start + Tile::kStatistics) + kStageRows,
                             lane, a.d_score);
  } else {
    finish_query_weights<Tile>(a.delta, a.score, a.d_weight,
                               start + Tile::kBits + warp * Tile::kWarpRows * (kStageRows / 8),
                               lane, a.d_score);
  }
}

/// Passes tiles that only the other warpgroup needs.
template <class Tile>
__device__ __forceinline__ void skip_tiles(const SharedLayout<Tile>& layout, Accumulated<Tile>& a,
                                           int count, int lane) {
  for (; count > 0; --count) {
    // An arrival before the stage is full would count for the round before.
    barrier_wait(layout.full(a.ring.stage), a.ring.parity);
    // A lane that has not seen it full would wait for the round after, which its own warp has let
    // come.
    __syncwarp();
    barrier_arrive_for_warp(layout.empty(a.ring.stage), lane);
    a.ring.advance();
  }
}

/// S and dO·Vᵀ of the tile in a stage are under way, with `kBetween` products between them: finishes P and
/// dS, and adds to dV. The stage before is empty then, and `done` its barrier.
template <class Tile, int kBetween>
__device__ __forceinline__ void finish_tile(const AttentionBackwardParams& params,
                                            const SharedLayout<Tile>& layout, Accumulated<Tile>& a,
                                            const BatchMask& mask, int stage, std::int64_t row0,
                                            std::int64_t other, bool edge, std::uint32_t done,
                                            int warp, int lane) {
  wgmma_wait<1 + kBetween>();
  wgmma_settle(a.score[0]);
  finish_probabilities<Tile>(params, layout, a, mask, stage, row0, other, edge, warp, lane);
  if constexpr (Tile::kKeys) {
    pack_kept<Tile>(a.score, a.kept);
    start_sums<Tile>(a.d_second, a.kept, layout.tile(stage + Tile::kOtherBytes));
    wgmma_wait<1>();
  } else {
    wgmma_wait<0>();
  }
  wgmma_settle(a.d_weight[0]);
  wgmma_settle(a.d_score[0]);
  if constexpr (Tile::kWide && kBetween > 0) barrier_arrive_for_warp(done, lane);
  finish_weights<Tile>(layout, a, stage, warp, lane);
  if constexpr (!Tile::kWide && kBetween > 0) barrier_arrive_for_warp(done, lane);
}

/// The same where registers are short: S is under way, and behind it `kBetween` products; dO·Vᵀ is not yet.
/// P and dS are packed when the product that reads the other's fragments has ended.
template <class Tile, int kBetween>
__device__ __forceinline__ void finish_tight_tile(const AttentionBackwardParams& params,
                                                  const SharedLayout<Tile>& layout,
                                                  Accumulated<Tile>& a, const BatchMask& mask,
                                                  int stage, std::int64_t row0, std::int64_t other,
                                                  bool edge, std::uint32_t done, int warp,
                                                  int lane) {
  wgmma_wait<kBetween>();
  wgmma_settle(a.score[0]);
  finish_probabilities<Tile>(params, layout, a, mask, stage, row0, other, edge, warp, lane);
  if constexpr (kBetween > 0) {
    wgmma_wait<0>();
    wgmma_settle(a.d_score[0]);
    barrier_arrive_for_warp(done, lane);
  }
  pack_kept<Tile>(a.score, a.kept);
  const std::uint64_t grad = layout.tile(stage + Tile::kOtherBytes);
  start_scores<Tile>(a.d_weight, a.second, grad);
  start_sums<Tile>(a.d_second, a.kept, grad);
  wgmma_wait<1>();
  wgmma_settle(a.d_weight[0]);
  const auto* delta =
      reinterpret_cast<const float*>(layout.shared + stage + Tile::kStatistics) + kStageRows;
  replace_key_weights<Tile>(a.score, a.d_weight, delta, lane);
  wgmma_wait<0>();
  wgmma_settle(a.kept[0]);
  wgmma_settle(a.d_weight[0]);
  pack_scores<Tile>(a.d_weight, a.d_score);
}

/// Adds what the tiles from `other` on give. Nothing is under way when a pass through the loop ends: the
/// compiler would not let products run on that it cannot count.
template <class Tile>
__device__ __forceinline__ void add_tiles(const AttentionBackwardParams& params,
                                          const SharedLayout<Tile>& layout, Accumulated<Tile>& a,
                                          const BatchMask& mask, std::int64_t row0,
                                          std::int64_t other, int tiles, int warp, int lane) {
  if (tiles == 0) return;
  int stage = layout.stage(a.ring.stage);
  const auto finish = [&]<int kBetween>(bool edge, std::uint32_t done) {
    if constexpr (Tile::kTight) {
      finish_tight_tile<Tile, kBetween>(params, layout, a, mask, stage, row0, other, edge, done,
                                        warp, lane);
    } else {
      start_scores<Tile>(a.d_weight, a.second, layout.tile(stage + Tile::kOtherBytes));
      finish_tile<Tile, kBetween>(params, layout, a, mask, stage, row0, other, edge, done, warp,
                                  lane);
    }
  };
  barrier_wait(layout.full(a.ring.stage), a.ring.parity);
  start_scores<Tile>(a.score, a.first, layout.tile(stage));
  // The diagonal is in the first tile of queries, or in the last tile of keys.
  finish.template operator()<0>(Tile::kKeys ? params.is_causal : tiles == 1, 0);
#pragma unroll 1
  for (; tiles > 1; --tiles) {
    const std::uint64_t done = layout.tile(stage);
    const std::uint32_t empty = layout.empty(a.ring.stage);
    a.ring.advance();
    stage = layout.stage(a.ring.stage);
    other += kStageRows;
    barrier_wait(layout.full(a.ring.stage), a.ring.parity);
    if constexpr (!Tile::kTight) {
      wgmma_wait<0>();  // for dV
      wgmma_settle(a.kept[0]);
    }
    start_scores<Tile>(a.score, a.first, layout.tile(stage));
    start_sums<Tile>(a.d_first, a.d_score, done);
    finish.template operator()<1>(!Tile::kKeys && tiles == 2, empty);
  }
  start_sums<Tile>(a.d_first, a.d_score, layout.tile(stage));
  wgmma_wait<0>();
  wgmma_settle(a.d_first[0]);
  if constexpr (Tile::kKeys) wgmma_settle(a.d_second[0]);
  barrier_arrive_for_warp(layout.empty(a.ring.stage), lane);
  a.ring.advance();
}

/// As load_rows, of a tile of own rows.
template <class Tile>
__device__ __forceinline__ void load_own_step(RowFragments<Tile>& rows, std::uint32_t shared,
                                              int warp_row, int lane, int k) {
  constexpr int kPartSteps = kPartColumns / 16;
  const int offset = swizzled_offset<Tile::kRows>(warp_row + (lane & 15), lane >> 4);
  load_matrices(rows[0],
                (shared + offset + k / kPartSteps * Tile::kOwnPart) ^ (k % kPartSteps << 5));
}

template <class Tile>
__device__ __forceinline__ void load_own_rows(AllRows<Tile>& rows, std::uint32_t shared,
                                              int warp_row, int lane) {
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) {
    load_own_step<Tile>(rows[k], shared, warp_row, lane, k);
  }
}

/// Finds and writes the statistics of the warp's queries, whose O is at `output_rows`.
template <class Tile>
__device__ __forceinline__ void find_statistics(const AttentionBackwardParams& params,
                                                const SharedLayout<Tile>& layout,
                                                Accumulated<Tile>& a, std::uint32_t output_rows,
                                                std::int64_t batch, std::int64_t row0, int warp_row,
                                                int lane) {
  using T = typename Tile::T;
  const auto* own_lse = reinterpret_cast<const float*>(layout.shared + Tile::kOwnLse);
  const auto keep_scale = static_cast<float>(params.keep_scale);
  auto* statistics = static_cast<float*>(params.statistics);
  float delta[2] = {};
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) {
    RowFragments<Tile> output;
    load_own_step<Tile>(output, output_rows, warp_row, lane, k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 o = unpack_floats<T>(output[0][i]);
      const float2 g = unpack_floats<T>(a.second[k][0][i]);
      delta[i % 2] = fmaf(o.x, g.x, fmaf(o.y, g.y, delta[i % 2]));
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    delta[h] += __shfl_xor_sync(kFullWarp, delta[h], 1);
    delta[h] += __shfl_xor_sync(kFullWarp, delta[h], 2);
    const int row = 8 * h + (lane >> 2);
    const float lse = own_lse[warp_row + row] * static_cast<float>(1 / kLn2);
    a.lse[0][h] = (Tile::kMasks || Tile::kPairs ? lse_of_masked(lse) : lse) - log2f(keep_scale);
    a.delta[0][h] = delta[h] / keep_scale;
    if (row0 + row >= params.length || (lane & 3) != 0) continue;
    const std::int64_t index = batch * params.length + row0 + row;
    statistics[index] = a.lse[0][h];
    statistics[params.batches * params.length + index] = a.delta[0][h];
  }
}

/// 64 columns of a warp's sums.
template <class Tile>
struct ResultPart {
  using T = typename Tile::T;
  static constexpr int kHead = kPartColumns;
  static constexpr int kRowTiles = 1;
};

/// Writes a warp's sums times `factor`, part by part.
template <class Tile>
__device__ __forceinline__ void write_sums(const SharedLayout<Tile>& layout, Sums<Tile>& sums,
                                           float factor, typename Tile::T* data,
                                           const AttentionOperand& strides, std::int64_t row0,
                                           std::int64_t rows, std::int64_t head, int warp_row,
                                           int lane) {
  const float factors[1][2] = {{factor, factor}};
  TargetRows<typename Tile::T> target = {data + row0 * strides.row, strides.row, strides.column,
                                         rows - row0, static_cast<int>(head)};
#pragma unroll
  for (int part = 0; part < Tile::kParts; ++part) {
    auto columns = target;
    if (part + 1 < Tile::kParts) columns.columns = min(target.columns, kPartColumns);
    write_rows<ResultPart<Tile>>(
        columns, reinterpret_cast<const Sums<ResultPart<Tile>>&>(part_of<Tile>(sums, part)),
        factors, layout.shared + Tile::kResults, warp_row, lane);
    target.data += kPartColumns * target.column_stride;
    target.columns -= kPartColumns;
  }
}

/// Before a warpgroup writes where its products have read.
[[maybe_unused]] __device__ __forceinline__ void wait_for_group(int group) {
  // By their numbers: with one that is not known the compiler reserves all sixteen.
  if (group == 0) {
    asm volatile("bar.sync 2, %0;" ::"n"(kGroupThreads) : "memory");
  } else {
    asm volatile("bar.sync 3, %0;" ::"n"(kGroupThreads) : "memory");
  }
}

/// The own rows of an item as operands, and the statistics of queries.
template <class Tile>
__device__ __forceinline__ void take_own_rows(const AttentionBackwardParams& params,
                                              const SharedLayout<Tile>& layout,
                                              Accumulated<Tile>& a, std::int64_t batch,
                                              std::int64_t row0, int warp_row, int group_row,
                                              int lane) {
  const std::uint32_t own = layout.address;
  if constexpr (!Tile::kTight) {
    load_own_rows<Tile>(a.first, own, warp_row, lane);
    load_own_rows<Tile>(a.second, own + Tile::kOwnBytes, warp_row, lane);
  } else {
    a.first = layout.tile(group_row * kPartRowBytes);
    a.second = layout.tile(group_row * kPartRowBytes + Tile::kOwnBytes);
  }
  if constexpr (!Tile::kKeys && !Tile::kWide) {
    find_statistics<Tile>(params, layout, a, own + 2 * Tile::kOwnBytes, batch, row0, warp_row,
                          lane);
  } else if constexpr (!Tile::kKeys) {
    barrier_wait(layout.full(a.ring.stage), a.ring.parity);
    find_statistics<Tile>(params, layout, a, own + layout.stage(a.ring.stage), batch, row0,
                          warp_row, lane);
    __syncwarp();
    barrier_arrive_for_warp(layout.empty(a.ring.stage), lane);
    a.ring.advance();
  }
}

/// Own rows are no longer read: the next item's may come.
template <class Tile>
__device__ __forceinline__ void release_own_rows(const SharedLayout<Tile>& layout, int lane) {
  __syncwarp();
  barrier_arrive_for_warp(layout.own_empty(), lane);
}

/// Writes the warp's rows of an item that all its turns have been added to.
template <class Tile>
__device__ __forceinline__ void write_item(const AttentionBackwardParams& params,
                                           const SharedLayout<Tile>& layout, Accumulated<Tile>& a,
                                           const BackwardBlock<typename Tile::T>& item,
                                           std::int64_t row0, int warp_row, int lane) {
  const auto factor = static_cast<float>(params.scale);
  if constexpr (Tile::kKeys) {
    if constexpr (Tile::kTight) wait_for_group(warp_row / Tile::kGroupRows);
    write_sums<Tile>(layout, a.d_first, factor, item.d_key, params.d_key_strides, row0, params.keys,
                     params.head, warp_row, lane);
    write_sums<Tile>(layout, a.d_second, 1.0F, item.d_value, params.d_value_strides, row0,
                     params.keys, params.head_v, warp_row, lane);
  } else {
    write_sums<Tile>(layout, a.d_first, factor, item.d_query, params.d_query_strides, row0,
                     params.length, params.head, warp_row, lane);
  }
}

/// A consumer warp, one of eight: its 16 rows of every item.
template <class Tile>
__device__ __forceinline__ void add_items(const AttentionBackwardParams& params, float scale,
                                          const SharedLayout<Tile>& layout, int warp, int lane) {
  const int warp_row = warp * Tile::kWarpRows;
  const int group_row = warp / 4 * Tile::kGroupRows;
  Accumulated<Tile> a;
  a.scale = scale;
  bool ends = false;
  for (std::uint32_t number = 0; !ends; ++number) {
    barrier_wait(layout.own_full(), number & 1U);
    const auto& turn = layout.turn(static_cast<int>(number));
    const auto& item = turn.block;
    const std::int64_t row0 = item.row0 + warp_row;
    take_own_rows<Tile>(params, layout, a, item.batch, row0, warp_row, group_row, lane);
    if constexpr (!Tile::kKeepsOwn) release_own_rows<Tile>(layout, lane);

    if (turn.is_first) {
      clear_sums<Tile>(a.d_first);
      clear_sums<Tile>(a.d_second);
    }
    const Walk all = walk_of<Tile>(params, item.batch, item.row0, Tile::kRows);
    const Walk walk = walk_of<Tile>(params, item.batch, item.row0 + group_row, Tile::kGroupRows);
    const BatchMask mask = mask_of_batch<Tile>(params, item.batch);
    // Of an item whose keys are all hidden no tile comes, wherever a part of it would begin.
    const int tiles_before = count_tiles(all.first, min(walk.first, all.end));
    const int own_tiles = count_tiles(walk.first, walk.end);
    skip_tiles<Tile>(layout, a, tiles_before, lane);
    add_tiles<Tile>(params, layout, a, mask, row0, walk.first, own_tiles, warp, lane);
    skip_tiles<Tile>(layout, a, count_tiles(all.first, all.end) - tiles_before - own_tiles, lane);

    ends = turn.ends;
    if (turn.is_last) write_item<Tile>(params, layout, a, item, row0, warp_row, lane);
    if constexpr (Tile::kKeepsOwn) release_own_rows<Tile>(layout, lane);
  }
}

template <class Tile>
__global__ void __launch_bounds__(kBlockThreads, 1)
    backward_wgmma_kernel(const __grid_constant__ AttentionBackwardParams params,
                          std::uint32_t tiles, float scale) {
  if constexpr (kHasWgmma) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const SharedLayout<Tile> layout(shared);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) {
      for (int stage = 0; stage < Tile::kStages; ++stage) {
        barrier_init(layout.full(stage), kGroupThreads);
        barrier_init(layout.empty(stage), kConsumerWarps * kWarpArrivals);
      }
      barrier_init(layout.own_full(), kGroupThreads);
      barrier_init(layout.own_empty(), kConsumerWarps * kWarpArrivals);
      fence_barrier_init();
    }
    __syncthreads();
    if (thread < kGroupThreads) {
      release_registers<Tile::kProducerRegisters>();
      copy_items<Tile>(params, tiles, layout);
    } else {
      take_registers<Tile::kConsumerRegisters>();
      add_items<Tile>(params, scale, layout, uniform_warp() - kProducerWarps, thread % 32);
    }
  }
}

template <class Tile>
void launch_tile(const AttentionBackwardParams& params, Stream stream) {
  const auto tiles =
      static_cast<std::uint32_t>(ceil_div(Tile::kKeys ? params.keys : params.length, Tile::kRows));
  const int multiprocessors = device_limits(stream.device).multiprocessors;
  launch(stream, Tile::kKeys ? "attention_backward_keys" : "attention_backward_queries",
         backward_wgmma_kernel<Tile>,
         std::min(std::int64_t{multiprocessors}, tiled_batches(params, Tile::kKeys) * tiles),
         kBlockThreads, Tile::kSharedBytes, params, tiles, static_cast<float>(params.scale_log2));
}

template <class T, int kHead, bool kKeys, BackwardMask kMask>
void launch_mask(const AttentionBackwardParams& params, Stream stream) {
  const bool drops = params.has_dropout && !params.zero;
  if (drops) return launch_tile<WarpgroupTile<T, kHead, true, kKeys, kMask>>(params, stream);
  launch_tile<WarpgroupTile<T, kHead, false, kKeys, kMask>>(params, stream);
}

template <class T, int kHead, bool kKeys>
void launch_side(const AttentionBackwardParams& params, Stream stream) {
  using enum BackwardMask;
  if (params.key_bias != nullptr) return launch_mask<T, kHead, kKeys, keys>(params, stream);
  if (params.mask_kind != AttentionMask::none) {
    return launch_mask<T, kHead, kKeys, pairs>(params, stream);
  }
  launch_mask<T, kHead, kKeys, none>(params, stream);
}

/// Both launches, for heads zero-padded to kHead.
template <int kHead>
void launch_sides(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  if (dtype == DType::float16) {
    launch_side<Half, kHead, false>(params, stream);
    return launch_side<Half, kHead, true>(params, stream);
  }
  launch_side<BFloat16, kHead, false>(params, stream);
  launch_side<BFloat16, kHead, true>(params, stream);
}

}  // namespace tenon::cuda
