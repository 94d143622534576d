// dK and dV of attention in float32 on tensor cores, with the statistics that the kernel for dQ has
// left; see attention_backward_tf32x3.cuh.
#include "cuda/kernels/attention_backward_tf32x3.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

template <class Tile>
struct KeyState {
  Sums<Tile> d_key;
  Sums<Tile> d_value;
  Tf32Mask mask;
  float bias[Tile::kRowTiles][2];  // what a mask of keys adds to the warp's
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
          p = exp2_approximate(Tile::kMasks ? p - lse : fmaf(p, scale, -lse));
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

/// Starts copying the masks of the warp's keys and the queries from `query0` on: what it had is read no
/// more.
template <class Tile>
__device__ __forceinline__ void copy_next_pairs(const AttentionBackwardParams& params,
                                                const KeyState<Tile>& state, std::uint32_t shared,
                                                int warp_row, std::int64_t row0,
                                                std::int64_t query0, int lane) {
  using SharedLayout = Tf32BackwardLayout<Tile>;
  if (!Tile::kPairMasks || state.mask.pairs == nullptr) return;
  __syncwarp();
  copy_pairs<Tile::kStageRows, Tile::kWarpRows>(
      params, shared + SharedLayout::kPairs + warp_row / Tile::kWarpRows * SharedLayout::kPairBytes,
      state.mask.pairs, query0, row0, lane);
  copy_async_commit();
}

/// Scores of the warp's keys (rows) and the queries from `query0` on times scale, plus what the mask adds.
template <class Tile>
__device__ __forceinline__ void mask_key_scores(const AttentionBackwardParams& params,
                                                const KeyState<Tile>& state, Scores<Tile>& score,
                                                const unsigned char* shared, int warp_row,
                                                std::int64_t row0, std::int64_t query0, int lane) {
  using SharedLayout = Tf32BackwardLayout<Tile>;
  if constexpr (!Tile::kPairMasks) {
    const int g = lane >> 2;
    add_mask<Tile>(params, score, lane, [&](int row, int) {
      const float bias = state.bias[(row - g) / 16][(row - g) / 8 % 2];
      return make_float2(bias, bias);
    });
  } else if (state.mask.pairs != nullptr) {
    constexpr int kStride = kPairStride<Tile::kWarpRows>;
    const auto* pairs = reinterpret_cast<const float*>(
        shared + SharedLayout::kPairs + warp_row / Tile::kWarpRows * SharedLayout::kPairBytes);
    add_mask<Tile>(params, score, lane, [&](int row, int column) {
      return make_float2(mask_in_log2(pairs[column * kStride + row]),
                         mask_in_log2(pairs[(column + 1) * kStride + row]));
    });
  } else {
    add_mask<Tile>(params, score, lane, [&](int row, int column) {
      return make_float2(
          read_mask(params, state.mask.first, query0 + column, row0 + row),
          read_mask(params, state.mask.first, query0 + column + 1, row0 + row));
    });
  }
}

template <class Tile>
__device__ __forceinline__ void find_key_mask(const AttentionBackwardParams& params,
                                              KeyState<Tile>& state, std::int64_t batch,
                                              std::int64_t row0, int lane) {
  state.mask = find_mask(params, batch);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t key = row0 + 16 * i + 8 * h + (lane >> 2);
      const bool exists = state.mask.keys != nullptr && key < params.keys;
      state.bias[i][h] = exists ? state.mask.keys[key] : -INFINITY;
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
  using SharedLayout = Tf32BackwardLayout<Tile>;
  const std::int64_t row0 = block.row0 + warp_row;
  const std::int64_t next = query0 + Tile::kStageRows;
  if (row0 >= params.keys || (params.is_causal && next <= row0)) {
    copy_next_pairs<Tile>(params, state, shared_address(shared), warp_row, row0, next, lane);
    return;
  }
  const std::uint32_t rows = shared_address(shared) + tile_bytes<Tile>(warp_row);
  const std::uint32_t queries = shared_address(shared) + stage;
  const auto* tiles = reinterpret_cast<const float*>(shared + stage);
  const float* statistics = tiles + SharedLayout::kStatistics / 4;
  const QueryStage other{statistics, statistics + Tile::kStageRows,
                         shared + stage + SharedLayout::kBits + warp_row / 8};
  Scores<Tile> score, other_score;
  multiply_rows<Tile>(score, rows, queries, lane);
  if constexpr (Tile::kMasks) {
    mask_key_scores<Tile>(params, state, score, shared, warp_row, row0, query0, lane);
    copy_next_pairs<Tile>(params, state, shared_address(shared), warp_row, row0, next, lane);
  }
  finish_probabilities<Tile>(params, score, other_score, other, row0, query0, lane);
  add_weighted_rows<Tile>(state.d_value, other_score, tiles + SharedLayout::kOther / 4, lane);
  multiply_rows<Tile>(other_score, rows + SharedLayout::kOwn, queries + SharedLayout::kOther, lane);
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
  using SharedLayout = Tf32BackwardLayout<Tile>;
  extern __shared__ __align__(16) unsigned char shared[];
  if (block_index() >= tiled_batches(params, true) * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<float>*>(shared + SharedLayout::kBlock);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp_row = thread / 32 * Tile::kWarpRows;

  KeyState<Tile> state{};
  const auto copy = [&](std::uint32_t stage, std::int64_t query0) {
    copy_queries<Tile, Tile::kStageRows>(params, block, stage, query0);
    const std::int64_t query = query0 + thread % Tile::kStageRows;
    const bool exists = query < params.length;
    if (thread < 2 * Tile::kStageRows) {
      const std::int64_t which = thread < Tile::kStageRows ? 0 : params.batches * params.length;
      copy_async<4>(stage + SharedLayout::kStatistics + thread * 4,
                    static_cast<const float*>(params.statistics) + which +
                        block.batch * params.length + query,
                    exists);
    } else if (Tile::kDrops && thread < 3 * Tile::kStageRows) {
      constexpr int kBytes = Tile::kRows / 8;  // of one query
      copy_async<kBytes>(stage + SharedLayout::kBits + thread % Tile::kStageRows * kBytes,
                         keep_bits_at(params, block, query, block.row0), exists);
    }
  };
  const auto step = [&](int stage, std::int64_t query0) {
    add_queries<Tile>(params, block, state, shared, stage, warp_row, query0, lane);
  };
#pragma unroll 1
  for (std::int64_t member = 0; member < params.group; ++member) {
    __syncthreads();  // the member before this one is read no more
    if (thread == 0) {
      block = locate_backward_block<float>(params, tiles, Tile::kRows, true, block_index(), member);
    }
    __syncthreads();
    // Causal: key j is seen by queries from j on.
    const std::int64_t first = params.is_causal ? block.row0 : 0;
    std::int64_t end = params.zero ? 0 : params.length;
    if constexpr (Tile::kMasks) {
      const LiveKeys live = live_keys(params, block.batch);
      if (block.row0 >= live.end || block.row0 + Tile::kRows <= live.first) end = 0;
      find_key_mask<Tile>(params, state, block.batch, block.row0 + warp_row, lane);
      copy_async_wait<0>();  // the masks that the member before this one copied last
      copy_next_pairs<Tile>(params, state, shared_address(shared), warp_row,
                            block.row0 + warp_row, first, lane);
    }
    if (first < end)
      copy_keys<Tile, Tile::kRows>(params, block, shared_address(shared), block.row0);
    for_each_stage<Tile>(shared_address(shared), first, end, copy, step);
  }
  write_keys<Tile>(params, block, state, warp_row, lane);
#endif
}

template <class Tile>
void launch_keys(const AttentionBackwardParams& params, Stream stream) {
  const std::int64_t tiles = ceil_div(params.keys, Tile::kRows);
  launch(stream, "attention_backward_keys", backward_keys_kernel<Tile>,
         tiled_batches(params, true) * tiles, Tile::kThreads, Tf32BackwardLayout<Tile>::kBytes,
         params, tiles);
}

/// Calls f with the Tf32BackwardTile of a call.
template <class F>
void dispatch_tile(const AttentionBackwardParams& params, const F& f) {
  dispatch_drops_and_masks(params, [&]<bool kDrops, Tf32Masks kMasks> {
    if (params.head > 64 || params.head_v > 64) {
      return f.template operator()<Tf32BackwardTile<128, 1, 1, kDrops, kMasks>>();
    }
    f.template operator()<Tf32BackwardTile<64, 1, 2, kDrops, kMasks>>();
  });
}

}  // namespace

void launch_backward_tf32x3_keys(const AttentionBackwardParams& params, Stream stream) {
  dispatch_tile(params, [&]<class Tile>() { launch_keys<Tile>(params, stream); });
}

std::int64_t backward_tf32x3_keys_shared_bytes(const AttentionBackwardParams& params) {
  std::int64_t bytes = 0;
  dispatch_tile(params, [&]<class Tile>() { bytes = Tf32BackwardLayout<Tile>::kBytes; });
  return bytes;
}

}  // namespace tenon::cuda
