// dQ of attention in float32 on tensor cores, and every query's statistics; see
// attention_backward_tf32x3.cuh.
#include "cuda/kernels/attention_backward_tf32x3.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

/// The registers of one warp; [i][h] is its row 16·i + 8·h + g.
template <class Tile>
struct QueryState {
  Sums<Tile> d_query;
  float lse[Tile::kRowTiles][2];  // in units of log2
  float delta[Tile::kRowTiles][2];
  Tf32Mask mask;
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
      state.lse[i][h] = Tile::kMasks ? lse_of_masked(lse) : lse;
      if (!exists || (lane & 3) != 0) continue;
      statistics[index] = state.lse[i][h];
      statistics[params.batches * params.length + index] = delta;
    }
  }
}

/// Scores of the warp's queries and the keys from `key0` on, masked where there is a mask, become
/// probabilities.
template <class Tile>
__device__ __forceinline__ void finish_probabilities(const AttentionBackwardParams& params,
                                                     const QueryState<Tile>& state,
                                                     Scores<Tile>& score, std::int64_t row0,
                                                     std::int64_t key0, int lane) {
  const auto scale = static_cast<float>(params.scale_log2);
  const auto present = static_cast<int>(min(params.keys - key0, std::int64_t{Tile::kStageRows}));
  const bool edge =
      present < Tile::kStageRows || (params.is_causal && key0 + Tile::kStageRows - 1 > row0);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * i + 8 * h + (lane >> 2);
      const int seen = edge ? seen_keys(params, row0 + row, key0, present) : Tile::kStageRows;
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& p = score[i][j][2 * h + c];
          p = exp2_approximate(Tile::kMasks ? p - state.lse[i][h]
                                            : fmaf(p, scale, -state.lse[i][h]));
          if (edge && 8 * j + 2 * (lane & 3) + c >= seen) p = 0;
        }
      }
    }
  }
}

/// Probabilities become dS; `bits` are the decisions of the warp's queries, a word each.
template <class Tile>
__device__ __forceinline__ void finish_query_weights(const AttentionBackwardParams& params,
                                                     const QueryState<Tile>& state,
                                                     Scores<Tile>& probability,
                                                     const Scores<Tile>& d_weight,
                                                     const std::uint32_t* bits, int lane) {
  const auto keep_scale = static_cast<float>(params.keep_scale);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * i + 8 * h + (lane >> 2);
      const std::uint32_t keep = Tile::kDrops ? bits[row] >> (2 * (lane & 3)) : 0;
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float d = d_weight[i][j][2 * h + c];
          if constexpr (Tile::kDrops) d = (keep & (1U << (8 * j + c))) != 0 ? d * keep_scale : 0.0F;
          probability[i][j][2 * h + c] *= d - state.delta[i][h];
        }
      }
    }
  }
}

/// Starts copying the warp's masks of the keys from `key0` on: what it had is read no more.
template <class Tile>
__device__ __forceinline__ void copy_next_pairs(const AttentionBackwardParams& params,
                                                const QueryState<Tile>& state,
                                                std::uint32_t shared, int warp_row,
                                                std::int64_t row0, std::int64_t key0, int lane) {
  using SharedLayout = Tf32BackwardLayout<Tile>;
  if (!Tile::kPairMasks || state.mask.pairs == nullptr) return;
  __syncwarp();
  copy_pairs<Tile::kWarpRows, Tile::kStageRows>(
      params, shared + SharedLayout::kPairs + warp_row / Tile::kWarpRows * SharedLayout::kPairBytes,
      state.mask.pairs, row0, key0, lane);
  copy_async_commit();
}

template <class Tile>
__device__ __forceinline__ void add_keys(const AttentionBackwardParams& params,
                                         const BackwardBlock<float>& block, QueryState<Tile>& state,
                                         const unsigned char* shared, int stage, int warp_row,
                                         std::int64_t key0, int lane) {
  using SharedLayout = Tf32BackwardLayout<Tile>;
  const std::int64_t row0 = block.row0 + warp_row;
  if (row0 >= params.length || (params.is_causal && key0 >= row0 + Tile::kWarpRows)) return;
  const std::uint32_t rows = shared_address(shared) + tile_bytes<Tile>(warp_row);
  const std::uint32_t keys = shared_address(shared) + stage;
  Scores<Tile> score, d_weight;
  multiply_rows<Tile>(score, rows, keys, lane);
  if constexpr (Tile::kMasks) {
    const int pairs = SharedLayout::kPairs + warp_row / Tile::kWarpRows * SharedLayout::kPairBytes;
    mask_query_scores<Tile>(params, state.mask, score,
                            reinterpret_cast<const float*>(shared + pairs), row0, key0, lane);
    copy_next_pairs<Tile>(params, state, shared_address(shared), warp_row, row0,
                          key0 + Tile::kStageRows, lane);
  }
  finish_probabilities<Tile>(params, state, score, row0, key0, lane);
  multiply_rows<Tile>(d_weight, rows + SharedLayout::kOwn, keys + SharedLayout::kOther, lane);
  const auto* bits =
      reinterpret_cast<const std::uint32_t*>(shared + stage + SharedLayout::kBits) + warp_row;
  finish_query_weights<Tile>(params, state, score, d_weight, bits, lane);
  add_weighted_rows<Tile>(state.d_query, score, reinterpret_cast<const float*>(shared + stage),
                          lane);
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kMinBlocks) void backward_queries_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t tiles) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using SharedLayout = Tf32BackwardLayout<Tile>;
  extern __shared__ __align__(16) unsigned char shared[];
  if (block_index() >= params.batches * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<float>*>(shared + SharedLayout::kBlock);
  if (threadIdx.x == 0)
    block = locate_backward_block<float>(params, tiles, Tile::kRows, false, block_index());
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;

  QueryState<Tile> state{};
  std::int64_t first = 0;
  std::int64_t end = params.zero ? 0 : visible_keys(params, block.row0 + Tile::kRows);
  if (end > 0) {
    copy_queries<Tile, Tile::kRows>(params, block, shared_address(shared), block.row0);
    find_statistics<Tile>(params, block, state, warp_row, lane);
  }
  if constexpr (Tile::kMasks) {
    const LiveKeys live = live_keys(params, block.batch);
    first = live.first / Tile::kStageRows * Tile::kStageRows;
    end = min(end, live.end);
    state.mask = find_mask(params, block.batch);
    copy_next_pairs<Tile>(params, state, shared_address(shared), warp_row, block.row0 + warp_row,
                          first, lane);
  }
  const auto copy = [&](std::uint32_t stage, std::int64_t key) {
    copy_keys<Tile, Tile::kStageRows>(params, block, stage, key);
    const int row = static_cast<int>(threadIdx.x);
    if (!Tile::kDrops || row >= Tile::kRows) return;
    copy_async<4>(stage + SharedLayout::kBits + row * 4,
                  keep_bits_at(params, block, block.row0 + row, key),
                  block.row0 + row < params.length);
  };
  const auto step = [&](int stage, std::int64_t key) {
    add_keys<Tile>(params, block, state, shared, stage, warp_row, key, lane);
  };
  for_each_stage<Tile>(shared_address(shared), first, end, copy, step);
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

template <class Tile>
void launch_queries(const AttentionBackwardParams& params, Stream stream) {
  const std::int64_t tiles = ceil_div(params.length, Tile::kRows);
  launch(stream, "attention_backward_queries", backward_queries_kernel<Tile>,
         params.batches * tiles, Tile::kThreads, Tf32BackwardLayout<Tile>::kBytes, params, tiles);
}

/// Calls f with the Tf32BackwardTile of a call.
template <class F>
void dispatch_tile(const AttentionBackwardParams& params, const F& f) {
  dispatch_drops_and_masks(params, [&]<bool kDrops, Tf32Masks kMasks> {
    if (params.head > 64 || params.head_v > 64) {
      return f.template operator()<Tf32BackwardTile<128, 1, 1, kDrops, kMasks>>();
    }
    // Two row tiles leave shared memory for no masks.
    constexpr int kRowTiles = kMasks == Tf32Masks::pairs ? 1 : 2;
    f.template operator()<Tf32BackwardTile<64, kRowTiles, 2, kDrops, kMasks>>();
  });
}

}  // namespace

void launch_backward_tf32x3_queries(const AttentionBackwardParams& params, Stream stream) {
  dispatch_tile(params, [&]<class Tile>() { launch_queries<Tile>(params, stream); });
}

std::int64_t backward_tf32x3_queries_shared_bytes(const AttentionBackwardParams& params) {
  std::int64_t bytes = 0;
  dispatch_tile(params, [&]<class Tile>() { bytes = Tf32BackwardLayout<Tile>::kBytes; });
  return bytes;
}

}  // namespace tenon::cuda
