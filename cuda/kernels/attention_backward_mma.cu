// The gradient of attention on tensor cores (mma.sync) for float16 and bfloat16 without a mask, heads
// that are multiples of 8 up to 128, zero-padded to 64 or 128; float32 accumulators.
//
//   P  = 2^(Q·Kᵀ·scale·log2(e) - lse)              D = what dropout keeps, times 1/(1-p)
//   dV = (P∘D)ᵀ·dO      dS = P∘(D∘(dO·Vᵀ) - Σ dO∘O)      dQ = dS·K·scale      dK = dSᵀ·Q·scale
//
// Two kernels; a warp of either alone sums what reaches its rows, in order: no atomics.
//   queries  a warp holds 16 or 32 queries and walks over the keys: S, dO·Vᵀ, dQ. It runs first and
//            leaves lse in units of log2 and Σ dO∘O in `statistics`.
//   keys     a warp holds 16 or 32 keys and walks over the queries: Sᵀ, V·dOᵀ, dV, dK.
// Both own the rows of their C fragments, so P and dS go from product to product in registers.
//
// These are seven products; one kernel could do with five if it added up dQ over the tiles of keys.
// In a fixed order that takes a float32 partial sum of dQ for each tile: with 128 keys a tile, at 512
// heads x 512 x 64, 0.5 GB of traffic, 0.13 ms at 4.2 TB/s, and at 64 x 2048 twice that; two more
// products are 34 and 69 GFLOP, 0.09 and 0.17 ms at the 400 TFLOP/s that mma.sync gives.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/attention_backward.h"
#include "cuda/kernels/attention_mma.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kBackwardThreads = 128;
constexpr int kBackwardWarps = kBackwardThreads / 32;
constexpr int kStageRows = 64;  // rows of the other side that are copied at a time
constexpr int kStepRows = 32;   // and multiplied at a time

/// Compile-time facts of both kernels. A stage holds two tiles of the other side, a bit for each pair
/// where kDrops and, in the kernel for keys, the statistics of its queries.
template <class T_, int kHead_, bool kDrops_>
struct BackwardTile {
  using T = T_;
  static constexpr int kThreads = kBackwardThreads;
  static constexpr int kHead = kHead_;
  static constexpr bool kDrops = kDrops_;
  static constexpr int kRowTiles = kHead <= 64 ? 2 : 1;
  static constexpr int kColumnTiles = kStepRows / 8;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kBackwardWarps * kWarpRows;  // that a block owns
  static constexpr int kOwnBytes = kRows * kHead * 2;
  static constexpr int kOtherBytes = kStageRows * kHead * 2;
  static constexpr int kBits = 2 * kOtherBytes;  // offset in a stage
  static constexpr int kStatistics = kBits + (kDrops ? kStageRows * kRows / 8 : 0);
  static constexpr int kStageBytes = kStatistics + 2 * kStageRows * 4;
  static constexpr int kStages = 2 * kOwnBytes;  // offset in shared memory
  static constexpr int kBlock = kStages + 2 * kStageBytes;
  // The exclusive or of a step along the head needs tiles aligned to their rows.
  static_assert(kStageBytes % (2 * kHead) == 0);
};

/// The part of the problem that one block computes, with pointers to its batch.
template <class T>
struct BackwardBlock {
  std::int64_t batch;
  std::int64_t row0;  // the first query, or key, that the block owns
  const T *query, *key, *value, *grad, *output;
  T *d_query, *d_key, *d_value;
};

/// Which tile of `tiles` a block computes. Causal blocks go by length, the longest of all batches
/// first; others batch by batch, so that neighbours read the same rows.
template <class T>
__device__ BackwardBlock<T> locate_backward_block(const AttentionBackwardParams& p,
                                                  std::int64_t tiles, int tile_rows,
                                                  bool longest_is_last) {
  const std::int64_t divisor = p.is_causal ? p.batches : tiles;
  const std::int64_t quotient = divide(block_index(), divisor);
  const std::int64_t rest = block_index() - quotient * divisor;
  const std::int64_t batch = p.is_causal ? rest : quotient;
  std::int64_t tile = p.is_causal ? quotient : rest;
  if (p.is_causal && longest_is_last) tile = tiles - 1 - tile;
  const auto at = [&](const void* data, const AttentionOperand& strides) {
    return static_cast<T*>(const_cast<void*>(data)) + batch_offset(p, strides, batch);
  };
  return {batch,
          tile * tile_rows,
          at(p.query, p.query_strides),
          at(p.key, p.key_strides),
          at(p.value, p.value_strides),
          at(p.grad, p.grad_strides),
          at(p.output, p.output_strides),
          at(p.d_query, p.d_query_strides),
          at(p.d_key, p.d_key_strides),
          at(p.d_value, p.d_value_strides)};
}

/// Two neighbouring elements, widened.
template <class T>
__device__ __forceinline__ float2 unpack_floats(std::uint32_t packed) {
  const auto& pair = reinterpret_cast<const Pack<T, 2>&>(packed);
  return {widen(pair.item[0]), widen(pair.item[1])};
}

// --- queries ------------------------------------------------------------------------------------

/// The registers of one warp; [i][h] is its row 16·i + 8·h + g.
template <class Tile>
struct QueryState {
  std::uint32_t query[kHeadSteps<Tile>][Tile::kRowTiles][4];
  std::uint32_t grad[kHeadSteps<Tile>][Tile::kRowTiles][4];
  Sums<Tile> d_query;
  float lse[Tile::kRowTiles][2];  // in units of log2
  float delta[Tile::kRowTiles][2];
};

/// Starts copying the keys, values and decisions from `key` on.
template <class Tile>
__device__ __forceinline__ void copy_key_stage(const AttentionBackwardParams& params,
                                               const BackwardBlock<typename Tile::T>& block,
                                               std::uint32_t stage, std::int64_t key) {
  const std::int64_t rows = params.keys - key;
  copy_tile<Tile, kStageRows>(stage, block.key + key * params.key_strides.row,
                              params.key_strides.row, rows, static_cast<int>(params.head / 8));
  copy_tile<Tile, kStageRows>(stage + Tile::kOtherBytes,
                              block.value + key * params.value_strides.row,
                              params.value_strides.row, rows, static_cast<int>(params.head_v / 8));
  if constexpr (Tile::kDrops) {
    constexpr int kBytes = kStageRows / 8;  // of one query
    const int row = static_cast<int>(threadIdx.x);
    if (row < Tile::kRows) {
      const std::int64_t query = block.row0 + row;
      copy_async<kBytes>(stage + Tile::kBits + row * kBytes,
                         params.keep_bits +
                             (block.batch * params.length + query) * params.keep_bits_stride +
                             key / 8,
                         query < params.length);
    }
  }
}

/// Reads the warp's queries and gradients, and finds and writes their statistics.
template <class Tile>
__device__ __forceinline__ void load_queries(const AttentionBackwardParams& params,
                                             const BackwardBlock<typename Tile::T>& block,
                                             QueryState<Tile>& state, std::uint32_t shared,
                                             int warp_row, int lane) {
  using T = typename Tile::T;
#pragma unroll
  for (int step = 0; step < kHeadSteps<Tile>; ++step) {
    load_rows<Tile>(state.query[step], shared, warp_row, lane, step);
    load_rows<Tile>(state.grad[step], shared + Tile::kOwnBytes, warp_row, lane, step);
  }
  auto* statistics = static_cast<float*>(params.statistics);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t query = block.row0 + warp_row + 16 * i + 8 * h + (lane >> 2);
      const bool exists = query < params.length;
      const T* output = block.output + query * params.output_strides.row;
      float delta = 0;
#pragma unroll
      for (int piece = 0; piece < kHeadTiles<Tile>; ++piece) {
        const int column = 8 * piece + 2 * (lane & 3);
        if (!exists || column >= params.head_v) continue;
        const float2 o = unpack_floats<T>(*reinterpret_cast<const std::uint32_t*>(output + column));
        const float2 g = unpack_floats<T>(state.grad[piece / 2][i][h + 2 * (piece % 2)]);
        delta = fmaf(o.x, g.x, fmaf(o.y, g.y, delta));
      }
      delta += __shfl_xor_sync(kFullWarp, delta, 1);
      delta += __shfl_xor_sync(kFullWarp, delta, 2);
      const std::int64_t index = block.batch * params.length + query;
      const float lse =
          exists ? static_cast<const float*>(params.lse)[index] * static_cast<float>(1 / kLn2) : 0;
      state.delta[i][h] = delta;
      state.lse[i][h] = lse;
      if (!exists || (lane & 3) != 0) continue;
      statistics[index] = lse;
      statistics[params.batches * params.length + index] = delta;
    }
  }
}

/// dS of the warp's queries and the kStepRows keys from `key0` on, rounded.
template <class Tile>
__device__ __forceinline__ void finish_query_weights(
    const AttentionBackwardParams& params, const QueryState<Tile>& state, const Scores<Tile>& score,
    const Scores<Tile>& d_weight, const unsigned char* bits, std::int64_t row0, std::int64_t key0,
    int lane, Weights<Tile>& weights) {
  const auto scale = static_cast<float>(params.scale_log2);
  const auto keep_scale = static_cast<float>(params.keep_scale);
  const auto present = static_cast<int>(min(params.keys - key0, std::int64_t{kStepRows}));
  const bool edge = present < kStepRows || (params.is_causal && key0 + kStepRows - 1 > row0);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * i + 8 * h + (lane >> 2);
      const int seen = edge ? seen_keys(params, row0 + row, key0, present) : kStepRows;
      std::uint32_t keep = 0;
      if constexpr (Tile::kDrops) {
        keep = *reinterpret_cast<const std::uint32_t*>(bits + row * (kStageRows / 8)) >>
               (2 * (lane & 3));
      }
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
        float d_score[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float p = exp2_approximate(fmaf(score[i][j][2 * h + c], scale, -state.lse[i][h]));
          if (edge && 8 * j + 2 * (lane & 3) + c >= seen) p = 0;
          float d = d_weight[i][j][2 * h + c];
          if constexpr (Tile::kDrops) {
            d = (keep >> (8 * j + c)) & 1U ? d * keep_scale : 0.0F;
          }
          d_score[c] = p * (d - state.delta[i][h]);
        }
        weights[i][j][h] = pack_floats<typename Tile::T>(d_score[0], d_score[1]);
      }
    }
  }
}

/// Adds what the kStepRows keys from row `step`·kStepRows of the stage on give to dQ.
template <class Tile>
__device__ __forceinline__ void add_keys(const AttentionBackwardParams& params,
                                         const BackwardBlock<typename Tile::T>& block,
                                         QueryState<Tile>& state, const unsigned char* shared,
                                         int stage, int step, int warp_row, std::int64_t key0,
                                         int lane) {
  const std::int64_t row0 = block.row0 + warp_row;
  if (row0 >= params.length || key0 >= params.keys) return;
  if (params.is_causal && key0 >= row0 + Tile::kWarpRows) return;
  const std::uint32_t keys = shared_address(shared) + stage + step * kStepRows * kRowBytes<Tile>;
  Scores<Tile> score = {}, d_weight = {};
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) {
    add_row_products<Tile>(score, state.query[k], keys, lane, k);
  }
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) {
    add_row_products<Tile>(d_weight, state.grad[k], keys + Tile::kOtherBytes, lane, k);
  }
  Weights<Tile> weights;
  const unsigned char* bits =
      shared + stage + Tile::kBits + warp_row * (kStageRows / 8) + step * (kStepRows / 8);
  finish_query_weights<Tile>(params, state, score, d_weight, bits, row0, key0, lane, weights);
  add_weighted_rows<Tile>(state.d_query, weights, keys, lane);
}

template <class Tile>
__global__ __launch_bounds__(kBackwardThreads, 2) void backward_queries_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t tiles) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using T = typename Tile::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  if (block_index() >= params.batches * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<T>*>(shared + Tile::kBlock);
  if (threadIdx.x == 0) block = locate_backward_block<T>(params, tiles, Tile::kRows, true);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::uint32_t address = shared_address(shared);
  const std::int64_t rows = params.length - block.row0;

  QueryState<Tile> state{};
  const std::int64_t end = params.zero ? 0 : visible_keys(params, block.row0 + Tile::kRows);
  if (end > 0) {
    copy_tile<Tile, Tile::kRows>(address, block.query + block.row0 * params.query_strides.row,
                                 params.query_strides.row, rows, static_cast<int>(params.head / 8));
    copy_tile<Tile, Tile::kRows>(
        address + Tile::kOwnBytes, block.grad + block.row0 * params.grad_strides.row,
        params.grad_strides.row, rows, static_cast<int>(params.head_v / 8));
    copy_key_stage<Tile>(params, block, address + Tile::kStages, 0);
    copy_async_commit();
  }
  int stage = Tile::kStages;
  for (std::int64_t key0 = 0; key0 < end; key0 += kStageRows) {
    copy_async_wait<0>();
    __syncthreads();  // this stage has come, and no warp reads the other one any more
    const int next = 2 * Tile::kStages + Tile::kStageBytes - stage;
    if (key0 + kStageRows < end) {
      copy_key_stage<Tile>(params, block, address + next, key0 + kStageRows);
      copy_async_commit();
    }
    if (key0 == 0) load_queries<Tile>(params, block, state, address, warp_row, lane);
#pragma unroll 1
    for (int step = 0; step < kStageRows / kStepRows; ++step) {
      add_keys<Tile>(params, block, state, shared, stage, step, warp_row, key0 + step * kStepRows,
                     lane);
    }
    stage = next;
  }
  float factor[Tile::kRowTiles][2];
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
    factor[i][0] = factor[i][1] = static_cast<float>(params.scale);
  }
  const AttentionOperand& strides = params.d_query_strides;
  write_rows<Tile>({block.d_query + (block.row0 + warp_row) * strides.row, strides.row,
                    strides.column, rows - warp_row, static_cast<int>(params.head)},
                   state.d_query, factor, shared, warp_row, lane);
#endif
}

// --- keys ---------------------------------------------------------------------------------------

template <class Tile>
struct KeyState {
  Sums<Tile> d_key;
  Sums<Tile> d_value;
};

/// Starts copying the queries from `query` on, their gradients, decisions and statistics.
template <class Tile>
__device__ __forceinline__ void copy_query_stage(const AttentionBackwardParams& params,
                                                 const BackwardBlock<typename Tile::T>& block,
                                                 std::uint32_t stage, std::int64_t query) {
  static_assert(kBackwardThreads == 2 * kStageRows);
  const std::int64_t rows = params.length - query;
  copy_tile<Tile, kStageRows>(stage, block.query + query * params.query_strides.row,
                              params.query_strides.row, rows, static_cast<int>(params.head / 8));
  copy_tile<Tile, kStageRows>(stage + Tile::kOtherBytes,
                              block.grad + query * params.grad_strides.row, params.grad_strides.row,
                              rows, static_cast<int>(params.head_v / 8));
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread % kStageRows;
  const std::int64_t index = block.batch * params.length + query + row;
  const std::int64_t which = thread < kStageRows ? 0 : params.batches * params.length;
  copy_async<4>(stage + Tile::kStatistics + thread * 4,
                static_cast<const float*>(params.statistics) + which + index, row < rows);
  if constexpr (Tile::kDrops) {
    constexpr int kBytes = Tile::kRows / 8;  // of one query
    if (thread < kStageRows) {
      copy_async<kBytes>(stage + Tile::kBits + row * kBytes,
                         params.keep_bits + index * params.keep_bits_stride + block.row0 / 8,
                         row < rows);
    }
  }
}

/// Bit 8·(2·i + h) of keep[j][c]: whether dropout keeps the warp's key 16·i + 8·h + g for the query
/// 8·j + 2·t + c.
template <class Tile>
__device__ __forceinline__ std::uint32_t load_keep(const unsigned char* bits, int j, int c,
                                                   int lane) {
  using Word = std::conditional_t<Tile::kRowTiles == 2, std::uint32_t, std::uint16_t>;
  const int query = 8 * j + 2 * (lane & 3) + c;
  return static_cast<std::uint32_t>(
             *reinterpret_cast<const Word*>(bits + query * (Tile::kRows / 8))) >>
         (lane >> 2);
}

/// Scores of the warp's keys (rows) and kStepRows queries to probabilities, and these, dropped and
/// rounded, to weights.
template <class Tile>
__device__ __forceinline__ void finish_probabilities(const AttentionBackwardParams& params,
                                                     Scores<Tile>& score, const float* lse,
                                                     const unsigned char* bits, std::int64_t row0,
                                                     std::int64_t query0, int lane,
                                                     Weights<Tile>& weights) {
  const auto scale = static_cast<float>(params.scale_log2);
  const bool edge = params.is_causal && query0 < row0 + Tile::kWarpRows - 1;
  // Query 8·j + 2·t + c is seen by keys up to `reach` rows after the warp's first.
  const int reach = edge ? static_cast<int>(query0 - row0) : 0;
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 offset = *reinterpret_cast<const float2*>(lse + 8 * j + 2 * (lane & 3));
    std::uint32_t keep[2] = {};
    if constexpr (Tile::kDrops) {
      keep[0] = load_keep<Tile>(bits, j, 0, lane);
      keep[1] = load_keep<Tile>(bits, j, 1, lane);
    }
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float kept[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& p = score[i][j][2 * h + c];
          p = exp2_approximate(fmaf(p, scale, c == 0 ? -offset.x : -offset.y));
          const int row = 16 * i + 8 * h + (lane >> 2);
          if (edge && row > reach + 8 * j + 2 * (lane & 3) + c) p = 0;
          kept[c] = !Tile::kDrops || ((keep[c] >> (8 * (2 * i + h))) & 1U) != 0 ? p : 0.0F;
        }
        weights[i][j][h] = pack_floats<typename Tile::T>(kept[0], kept[1]);
      }
    }
  }
}

/// dS, rounded, of the same tile.
template <class Tile>
__device__ __forceinline__ void finish_key_weights(const AttentionBackwardParams& params,
                                                   const Scores<Tile>& probability,
                                                   const Scores<Tile>& d_weight, const float* delta,
                                                   const unsigned char* bits, int lane,
                                                   Weights<Tile>& weights) {
  const auto keep_scale = static_cast<float>(params.keep_scale);
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 offset = *reinterpret_cast<const float2*>(delta + 8 * j + 2 * (lane & 3));
    std::uint32_t keep[2] = {};
    if constexpr (Tile::kDrops) {
      keep[0] = load_keep<Tile>(bits, j, 0, lane);
      keep[1] = load_keep<Tile>(bits, j, 1, lane);
    }
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float d_score[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float d = d_weight[i][j][2 * h + c];
          if constexpr (Tile::kDrops) {
            d = ((keep[c] >> (8 * (2 * i + h))) & 1U) != 0 ? d * keep_scale : 0.0F;
          }
          d_score[c] = probability[i][j][2 * h + c] * (d - (c == 0 ? offset.x : offset.y));
        }
        weights[i][j][h] = pack_floats<typename Tile::T>(d_score[0], d_score[1]);
      }
    }
  }
}

/// scores += the warp's rows of a tile · columnsᵀ.
template <class Tile>
__device__ __forceinline__ void add_tile_products(Scores<Tile>& scores, std::uint32_t tile,
                                                  int warp_row, std::uint32_t columns, int lane) {
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) {
    RowFragments<Tile> rows;
    load_rows<Tile>(rows, tile, warp_row, lane, k);
    add_row_products<Tile>(scores, rows, columns, lane, k);
  }
}

/// Adds what the kStepRows queries from row `step`·kStepRows of the stage on give to dK and dV. Queries
/// past the end are zeros, and so are their gradients: they add nothing.
template <class Tile>
__device__ __forceinline__ void add_queries(const AttentionBackwardParams& params,
                                            const BackwardBlock<typename Tile::T>& block,
                                            KeyState<Tile>& state, const unsigned char* shared,
                                            int stage, int step, int warp_row, std::int64_t query0,
                                            int lane) {
  const std::int64_t row0 = block.row0 + warp_row;
  if (row0 >= params.keys || query0 >= params.length) return;
  if (params.is_causal && query0 + kStepRows <= row0) return;
  const std::uint32_t address = shared_address(shared);
  const std::uint32_t queries = address + stage + step * kStepRows * kRowBytes<Tile>;
  const std::uint32_t grads = queries + Tile::kOtherBytes;
  const auto* lse =
      reinterpret_cast<const float*>(shared + stage + Tile::kStatistics) + step * kStepRows;
  const unsigned char* bits =
      shared + stage + Tile::kBits + step * kStepRows * (Tile::kRows / 8) + warp_row / 8;

  Scores<Tile> score = {};
  add_tile_products<Tile>(score, address, warp_row, queries, lane);
  Weights<Tile> weights;
  finish_probabilities<Tile>(params, score, lse, bits, row0, query0, lane, weights);
  add_weighted_rows<Tile>(state.d_value, weights, grads, lane);
  Scores<Tile> d_weight = {};
  add_tile_products<Tile>(d_weight, address + Tile::kOwnBytes, warp_row, grads, lane);
  finish_key_weights<Tile>(params, score, d_weight, lse + kStageRows, bits, lane, weights);
  add_weighted_rows<Tile>(state.d_key, weights, queries, lane);
}

/// Writes dK and dV through the warp's own rows of keys and values.
template <class Tile>
__device__ __forceinline__ void write_keys(const AttentionBackwardParams& params,
                                           const BackwardBlock<typename Tile::T>& block,
                                           const KeyState<Tile>& state, unsigned char* shared,
                                           int warp_row, int lane) {
  float key_factor[Tile::kRowTiles][2], value_factor[Tile::kRowTiles][2];
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
    key_factor[i][0] = key_factor[i][1] = static_cast<float>(params.scale);
    value_factor[i][0] = value_factor[i][1] = static_cast<float>(params.keep_scale);
  }
  const std::int64_t row0 = block.row0 + warp_row;
  const AttentionOperand& keys = params.d_key_strides;
  write_rows<Tile>({block.d_key + row0 * keys.row, keys.row, keys.column, params.keys - row0,
                    static_cast<int>(params.head)},
                   state.d_key, key_factor, shared, warp_row, lane);
  const AttentionOperand& values = params.d_value_strides;
  write_rows<Tile>({block.d_value + row0 * values.row, values.row, values.column,
                    params.keys - row0, static_cast<int>(params.head_v)},
                   state.d_value, value_factor, shared + Tile::kOwnBytes, warp_row, lane);
}

template <class Tile>
__global__ __launch_bounds__(kBackwardThreads, 2) void backward_keys_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t tiles) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using T = typename Tile::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  if (block_index() >= params.batches * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<T>*>(shared + Tile::kBlock);
  if (threadIdx.x == 0) block = locate_backward_block<T>(params, tiles, Tile::kRows, false);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::uint32_t address = shared_address(shared);

  KeyState<Tile> state{};
  // Causal: key j is seen by queries from j on; tiles of keys start at multiples of kStageRows.
  const std::int64_t first = params.is_causal ? block.row0 : 0;
  const std::int64_t end = params.zero ? 0 : params.length;
  if (first < end) {
    const std::int64_t rows = params.keys - block.row0;
    copy_tile<Tile, Tile::kRows>(address, block.key + block.row0 * params.key_strides.row,
                                 params.key_strides.row, rows, static_cast<int>(params.head / 8));
    copy_tile<Tile, Tile::kRows>(
        address + Tile::kOwnBytes, block.value + block.row0 * params.value_strides.row,
        params.value_strides.row, rows, static_cast<int>(params.head_v / 8));
    copy_query_stage<Tile>(params, block, address + Tile::kStages, first);
    copy_async_commit();
  }
  int stage = Tile::kStages;
  for (std::int64_t query0 = first; query0 < end; query0 += kStageRows) {
    copy_async_wait<0>();
    __syncthreads();  // this stage has come, and no warp reads the other one any more
    const int next = 2 * Tile::kStages + Tile::kStageBytes - stage;
    if (query0 + kStageRows < end) {
      copy_query_stage<Tile>(params, block, address + next, query0 + kStageRows);
      copy_async_commit();
    }
#pragma unroll 1
    for (int step = 0; step < kStageRows / kStepRows; ++step) {
      add_queries<Tile>(params, block, state, shared, stage, step, warp_row,
                        query0 + step * kStepRows, lane);
    }
    stage = next;
  }
  write_keys<Tile>(params, block, state, shared, warp_row, lane);
#endif
}

template <class T, int kHead, bool kDrops>
void launch_tile(const AttentionBackwardParams& params, Stream stream) {
  using Tile = BackwardTile<T, kHead, kDrops>;
  constexpr std::size_t kSharedBytes = Tile::kBlock + sizeof(BackwardBlock<T>);
  const std::int64_t query_tiles = ceil_div(params.length, Tile::kRows);
  launch(stream, "attention_backward_queries", backward_queries_kernel<Tile>,
         params.batches * query_tiles, kBackwardThreads, kSharedBytes, params, query_tiles);
  const std::int64_t key_tiles = ceil_div(params.keys, Tile::kRows);
  launch(stream, "attention_backward_keys", backward_keys_kernel<Tile>, params.batches * key_tiles,
         kBackwardThreads, kSharedBytes, params, key_tiles);
}

template <class T>
void launch_heads(const AttentionBackwardParams& params, Stream stream) {
  const bool drops = params.has_dropout && !params.zero;
  if (std::max(params.head, params.head_v) <= 64) {
    drops ? launch_tile<T, 64, true>(params, stream) : launch_tile<T, 64, false>(params, stream);
  } else {
    drops ? launch_tile<T, 128, true>(params, stream) : launch_tile<T, 128, false>(params, stream);
  }
}

}  // namespace

void launch_backward_mma(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  if (dtype == DType::float16) return launch_heads<Half>(params, stream);
  launch_heads<BFloat16>(params, stream);
}

}  // namespace tenon::cuda
