// The gradient of attention in float32 on tensor cores, each product of floats by three of TF32 numbers
// (cuda/device/tf32x3.cuh); without a mask, heads that are multiples of 4 up to 128, zero-padded to 64
// or 128.
//
//   P  = 2^(Q·Kᵀ·scale·log2(e) - lse)              D = what dropout keeps, times 1/(1-p)
//   dV = (P∘D)ᵀ·dO      dS = P∘(D∘(dO·Vᵀ) - Σ dO∘O)      dQ = dS·K·scale      dK = dSᵀ·Q·scale
//
// Two kernels, as for 16 bits (attention_backward_mma.cuh); a warp of either alone sums what reaches
// its rows, in order: no atomics.
//   queries  a warp holds 32 queries and walks over the keys: S, dO·Vᵀ, dQ. It runs first and leaves
//            lse in units of log2 and Σ dO∘O in `statistics`.
//   keys     a warp holds 16 keys, for two sums, and walks over the queries: Sᵀ, V·dOᵀ, dV, dK.
#include <algorithm>

#include "cuda/kernels/attention_backward_common.cuh"
#include "cuda/kernels/attention_tf32x3.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

/// Compile-time facts of a kernel. A stage holds two tiles of the other side and, where kDrops, a bit
/// for each pair; in the kernel for keys also the statistics of its queries.
template <int kHead_, int kRowTiles_, int kMinBlocks_, bool kDrops_>
struct BackwardTile {
  static constexpr int kThreads = 128;
  static constexpr int kHead = kHead_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kMinBlocks = kMinBlocks_;
  static constexpr bool kDrops = kDrops_;
  static constexpr int kStageRows = 32;
  static constexpr int kColumnTiles = kStageRows / 8;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kThreads / 32 * kWarpRows;  // that a block owns
};

/// Offsets in shared memory, in bytes, and in a stage.
template <class Tile>
struct SharedLayout {
  static constexpr int kOwn = tile_bytes<Tile>(Tile::kRows);
  static constexpr int kOther = tile_bytes<Tile>(Tile::kStageRows);
  static constexpr int kStages = 2 * kOwn;
  static constexpr int kStatistics = 2 * kOther;
  static constexpr int kBits = kStatistics + 2 * Tile::kStageRows * 4;
  static constexpr int kStageBytes =
      kBits + (Tile::kDrops ? Tile::kStageRows * Tile::kRows / 8 : 0);
  static constexpr int kBlock = kStages + 2 * kStageBytes;
  static constexpr int kBytes = kBlock + static_cast<int>(sizeof(BackwardBlock<float>));
};

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
  using Layout = SharedLayout<Tile>;
  int stage = Layout::kStages;
  if (first < end) copy(shared + stage, first);
  copy_async_commit();
  for (std::int64_t row = first; row < end; row += Tile::kStageRows) {
    copy_async_wait<0>();
    __syncthreads();  // this stage has come, and no warp reads the other one any more
    const int next = 2 * Layout::kStages + Layout::kStageBytes - stage;
    if (row + Tile::kStageRows < end) {
      copy(shared + next, row + Tile::kStageRows);
      copy_async_commit();
    }
    step(stage, row);
    stage = next;
  }
}

// --- dQ -----------------------------------------------------------------------------------------

/// The registers of one warp; [i][h] is its row 16·i + 8·h + g.
template <class Tile>
struct QueryState {
  Sums<Tile> d_query;
  float lse[Tile::kRowTiles][2];  // in units of log2
  float delta[Tile::kRowTiles][2];
};

/// Finds and writes the statistics of the warp's queries.
template <class Tile>
__device__ __forceinline__ void find_statistics(const AttentionBackwardParams& params,
                                                const BackwardBlock<float>& block,
                                                QueryState<Tile>& state, int warp_row, int lane) {
  auto* statistics = static_cast<float*>(params.statistics);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t query = block.row0 + warp_row + 16 * i + 8 * h + (lane >> 2);
      const bool exists = query < params.length;
      const float* output = block.output + query * params.output_strides.row;
      const float* grad = block.grad + query * params.grad_strides.row;
      float delta = 0;
#pragma unroll
      for (int column = 4 * (lane & 3); column < Tile::kHead; column += 16) {
        if (!exists || column >= params.head_v) continue;
        const float4 o = *reinterpret_cast<const float4*>(output + column);
        const float4 g = *reinterpret_cast<const float4*>(grad + column);
        delta += fmaf(o.x, g.x, o.y * g.y) + fmaf(o.z, g.z, o.w * g.w);
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

/// Scores of the warp's queries and the keys from `key0` on become dS; `bits` are the decisions of the
/// warp's queries, a word each.
template <class Tile>
__device__ __forceinline__ void finish_query_weights(const AttentionBackwardParams& params,
                                                     const QueryState<Tile>& state,
                                                     Scores<Tile>& score,
                                                     const Scores<Tile>& d_weight,
                                                     const std::uint32_t* bits, std::int64_t row0,
                                                     std::int64_t key0, int lane) {
  const auto scale = static_cast<float>(params.scale_log2);
  const auto keep_scale = static_cast<float>(params.keep_scale);
  const auto present = static_cast<int>(min(params.keys - key0, std::int64_t{Tile::kStageRows}));
  const bool edge =
      present < Tile::kStageRows || (params.is_causal && key0 + Tile::kStageRows - 1 > row0);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * i + 8 * h + (lane >> 2);
      const int seen = edge ? seen_keys(params, row0 + row, key0, present) : Tile::kStageRows;
      const std::uint32_t keep = Tile::kDrops ? bits[row] >> (2 * (lane & 3)) : 0;
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& s = score[i][j][2 * h + c];
          float p = exp2_approximate(fmaf(s, scale, -state.lse[i][h]));
          if (edge && 8 * j + 2 * (lane & 3) + c >= seen) p = 0;
          float d = d_weight[i][j][2 * h + c];
          if constexpr (Tile::kDrops) d = (keep & (1U << (8 * j + c))) != 0 ? d * keep_scale : 0.0F;
          s = p * (d - state.delta[i][h]);
        }
      }
    }
  }
}

template <class Tile>
__device__ __forceinline__ void add_keys(const AttentionBackwardParams& params,
                                         const BackwardBlock<float>& block, QueryState<Tile>& state,
                                         const unsigned char* shared, int stage, int warp_row,
                                         std::int64_t key0, int lane) {
  using Layout = SharedLayout<Tile>;
  const std::int64_t row0 = block.row0 + warp_row;
  if (row0 >= params.length || (params.is_causal && key0 >= row0 + Tile::kWarpRows)) return;
  const std::uint32_t rows = shared_address(shared) + tile_bytes<Tile>(warp_row);
  const std::uint32_t keys = shared_address(shared) + stage;
  Scores<Tile> score, d_weight;
  multiply_rows<Tile>(score, rows, keys, lane);
  multiply_rows<Tile>(d_weight, rows + Layout::kOwn, keys + Layout::kOther, lane);
  const auto* bits =
      reinterpret_cast<const std::uint32_t*>(shared + stage + Layout::kBits) + warp_row;
  finish_query_weights<Tile>(params, state, score, d_weight, bits, row0, key0, lane);
  add_weighted_rows<Tile>(state.d_query, score, reinterpret_cast<const float*>(shared + stage),
                          lane);
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kMinBlocks) void backward_queries_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t tiles) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Layout = SharedLayout<Tile>;
  extern __shared__ __align__(16) unsigned char shared[];
  if (block_index() >= params.batches * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<float>*>(shared + Layout::kBlock);
  if (threadIdx.x == 0)
    block = locate_backward_block<float>(params, tiles, Tile::kRows, true, block_index());
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;

  QueryState<Tile> state{};
  const std::int64_t end = params.zero ? 0 : visible_keys(params, block.row0 + Tile::kRows);
  if (end > 0) {
    copy_queries<Tile, Tile::kRows>(params, block, shared_address(shared), block.row0);
    find_statistics<Tile>(params, block, state, warp_row, lane);
  }
  const auto copy = [&](std::uint32_t stage, std::int64_t key) {
    copy_keys<Tile, Tile::kStageRows>(params, block, stage, key);
    const int row = static_cast<int>(threadIdx.x);
    if (!Tile::kDrops || row >= Tile::kRows) return;
    copy_async<4>(stage + Layout::kBits + row * 4,
                  keep_bits_at(params, block, block.row0 + row, key),
                  block.row0 + row < params.length);
  };
  const auto step = [&](int stage, std::int64_t key) {
    add_keys<Tile>(params, block, state, shared, stage, warp_row, key, lane);
  };
  for_each_stage<Tile>(shared_address(shared), 0, end, copy, step);
  float factor[Tile::kRowTiles][2];
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
    factor[i][0] = factor[i][1] = static_cast<float>(params.scale);
  }
  const AttentionOperand& strides = params.d_query_strides;
  const std::int64_t row0 = block.row0 + warp_row;
  write_rows<Tile>({block.d_query + row0 * strides.row, strides.row, strides.column,
                    params.length - row0, params.head},
                   state.d_query, factor, lane);
#endif
}

// --- dK and dV ----------------------------------------------------------------------------------

template <class Tile>
struct KeyState {
  Sums<Tile> d_key;
  Sums<Tile> d_value;
};

/// What is read of a stage beside its tiles: of each query lse, Σ dO∘O, and a bit for each of the
/// block's keys, of which `bits` points to those of the warp.
struct QueryStage {
  const float* lse;
  const float* delta;
  const unsigned char* bits;
};

/// Bit 8·(2·i + h): whether dropout keeps the warp's key 16·i + 8·h + g for a query of the stage.
template <class Tile>
__device__ __forceinline__ std::uint32_t load_keep(const unsigned char* bits, int query, int lane) {
  using Word = std::conditional_t<Tile::kRowTiles == 2, std::uint32_t, std::uint16_t>;
  if constexpr (!Tile::kDrops) return 0xffffffffU;
  const Word word = *reinterpret_cast<const Word*>(bits + query * (Tile::kRows / 8));
  return static_cast<std::uint32_t>(word) >> (lane >> 2);
}

/// Scores of the warp's keys (rows) and the stage's queries become probabilities; `kept` is those that
/// dropout keeps.
template <class Tile>
__device__ __forceinline__ void finish_probabilities(const AttentionBackwardParams& params,
                                                     Scores<Tile>& score, Scores<Tile>& kept,
                                                     const QueryStage& stage, std::int64_t row0,
                                                     std::int64_t query0, int lane) {
  const auto scale = static_cast<float>(params.scale_log2);
  const bool edge = params.is_causal && query0 < row0 + Tile::kWarpRows - 1;
  // Query 8·j + 2·t + c is seen by keys up to `reach` rows after the warp's first.
  const int reach = edge ? static_cast<int>(query0 - row0) : 0;
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int query = 8 * j + 2 * (lane & 3) + c;
      const float lse = stage.lse[query];
      const std::uint32_t keep = load_keep<Tile>(stage.bits, query, lane);
#pragma unroll
      for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& p = score[i][j][2 * h + c];
          p = exp2_approximate(fmaf(p, scale, -lse));
          if (edge && 16 * i + 8 * h + (lane >> 2) > reach + query) p = 0;
          kept[i][j][2 * h + c] = (keep & (1U << (8 * (2 * i + h)))) != 0 ? p : 0.0F;
        }
      }
    }
  }
}

/// Probabilities of the same tile become dS.
template <class Tile>
__device__ __forceinline__ void finish_key_weights(const AttentionBackwardParams& params,
                                                   Scores<Tile>& probability,
                                                   const Scores<Tile>& d_weight,
                                                   const QueryStage& stage, int lane) {
  const auto keep_scale = static_cast<float>(params.keep_scale);
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int query = 8 * j + 2 * (lane & 3) + c;
      const float delta = stage.delta[query];
      const std::uint32_t keep = load_keep<Tile>(stage.bits, query, lane);
#pragma unroll
      for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float d = d_weight[i][j][2 * h + c];
          if constexpr (Tile::kDrops) {
            d = (keep & (1U << (8 * (2 * i + h)))) != 0 ? d * keep_scale : 0.0F;
          }
          probability[i][j][2 * h + c] *= d - delta;
        }
      }
    }
  }
}

/// Adds what the stage's queries, from `query0` on, give to dK and dV. Queries past the end are zeros,
/// and so are their gradients: they add nothing.
template <class Tile>
__device__ __forceinline__ void add_queries(const AttentionBackwardParams& params,
                                            const BackwardBlock<float>& block,
                                            KeyState<Tile>& state, const unsigned char* shared,
                                            int stage, int warp_row, std::int64_t query0,
                                            int lane) {
  using Layout = SharedLayout<Tile>;
  const std::int64_t row0 = block.row0 + warp_row;
  if (row0 >= params.keys || (params.is_causal && query0 + Tile::kStageRows <= row0)) return;
  const std::uint32_t rows = shared_address(shared) + tile_bytes<Tile>(warp_row);
  const std::uint32_t queries = shared_address(shared) + stage;
  const auto* tiles = reinterpret_cast<const float*>(shared + stage);
  const float* statistics = tiles + Layout::kStatistics / 4;
  const QueryStage other{statistics, statistics + Tile::kStageRows,
                         shared + stage + Layout::kBits + warp_row / 8};
  Scores<Tile> score, other_score;
  multiply_rows<Tile>(score, rows, queries, lane);
  finish_probabilities<Tile>(params, score, other_score, other, row0, query0, lane);
  add_weighted_rows<Tile>(state.d_value, other_score, tiles + Layout::kOther / 4, lane);
  multiply_rows<Tile>(other_score, rows + Layout::kOwn, queries + Layout::kOther, lane);
  finish_key_weights<Tile>(params, score, other_score, other, lane);
  add_weighted_rows<Tile>(state.d_key, score, tiles, lane);
}

template <class Tile>
__device__ __forceinline__ void write_keys(const AttentionBackwardParams& params,
                                           const BackwardBlock<float>& block,
                                           const KeyState<Tile>& state, int warp_row, int lane) {
  float key_factor[Tile::kRowTiles][2], value_factor[Tile::kRowTiles][2];
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
    key_factor[i][0] = key_factor[i][1] = static_cast<float>(params.scale);
    value_factor[i][0] = value_factor[i][1] = static_cast<float>(params.keep_scale);
  }
  const std::int64_t row0 = block.row0 + warp_row;
  const AttentionOperand& keys = params.d_key_strides;
  write_rows<Tile>(
      {block.d_key + row0 * keys.row, keys.row, keys.column, params.keys - row0, params.head},
      state.d_key, key_factor, lane);
  const AttentionOperand& values = params.d_value_strides;
  write_rows<Tile>({block.d_value + row0 * values.row, values.row, values.column,
                    params.keys - row0, params.head_v},
                   state.d_value, value_factor, lane);
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kMinBlocks) void backward_keys_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t tiles) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Layout = SharedLayout<Tile>;
  extern __shared__ __align__(16) unsigned char shared[];
  if (block_index() >= params.batches * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<float>*>(shared + Layout::kBlock);
  if (threadIdx.x == 0)
    block = locate_backward_block<float>(params, tiles, Tile::kRows, false, block_index());
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 32 * Tile::kWarpRows;

  KeyState<Tile> state{};
  // Causal: key j is seen by queries from j on.
  const std::int64_t first = params.is_causal ? block.row0 : 0;
  const std::int64_t end = params.zero ? 0 : params.length;
  if (first < end) copy_keys<Tile, Tile::kRows>(params, block, shared_address(shared), block.row0);
  const auto copy = [&](std::uint32_t stage, std::int64_t query0) {
    copy_queries<Tile, Tile::kStageRows>(params, block, stage, query0);
    const std::int64_t query = query0 + thread % Tile::kStageRows;
    const bool exists = query < params.length;
    if (thread < 2 * Tile::kStageRows) {
      const std::int64_t which = thread < Tile::kStageRows ? 0 : params.batches * params.length;
      copy_async<4>(stage + Layout::kStatistics + thread * 4,
                    static_cast<const float*>(params.statistics) + which +
                        block.batch * params.length + query,
                    exists);
    } else if (Tile::kDrops && thread < 3 * Tile::kStageRows) {
      constexpr int kBytes = Tile::kRows / 8;  // of one query
      copy_async<kBytes>(stage + Layout::kBits + thread % Tile::kStageRows * kBytes,
                         keep_bits_at(params, block, query, block.row0), exists);
    }
  };
  const auto step = [&](int stage, std::int64_t query0) {
    add_queries<Tile>(params, block, state, shared, stage, warp_row, query0, lane);
  };
  for_each_stage<Tile>(shared_address(shared), first, end, copy, step);
  write_keys<Tile>(params, block, state, warp_row, lane);
#endif
}

template <class Tile>
void launch_queries(const AttentionBackwardParams& params, Stream stream) {
  const std::int64_t tiles = ceil_div(params.length, Tile::kRows);
  launch(stream, "attention_backward_queries", backward_queries_kernel<Tile>,
         params.batches * tiles, Tile::kThreads, SharedLayout<Tile>::kBytes, params, tiles);
}

template <class Tile>
void launch_keys(const AttentionBackwardParams& params, Stream stream) {
  const std::int64_t tiles = ceil_div(params.keys, Tile::kRows);
  launch(stream, "attention_backward_keys", backward_keys_kernel<Tile>, params.batches * tiles,
         Tile::kThreads, SharedLayout<Tile>::kBytes, params, tiles);
}

template <bool kDrops>
void launch_both(const AttentionBackwardParams& params, Stream stream) {
  if (std::max(params.head, params.head_v) > 64) {
    launch_queries<BackwardTile<128, 1, 1, kDrops>>(params, stream);
    launch_keys<BackwardTile<128, 1, 1, kDrops>>(params, stream);
  } else {
    launch_queries<BackwardTile<64, 2, 2, kDrops>>(params, stream);
    launch_keys<BackwardTile<64, 1, 2, kDrops>>(params, stream);
  }
}

}  // namespace

void launch_backward_tf32x3(const AttentionBackwardParams& params, Stream stream) {
  if (params.has_dropout && !params.zero) return launch_both<true>(params, stream);
  launch_both<false>(params, stream);
}

}  // namespace tenon::cuda
