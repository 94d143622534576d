// dQ of attention on tensor cores; see attention_backward_mma.cuh. A warp holds its queries and their
// gradients as A fragments and walks over tiles of keys. It also leaves every query's statistics.
#include "cuda/kernels/attention_backward_mma.cuh"
#include "cuda/kernels/attention_backward_scores.cuh"

namespace tenon::cuda {
namespace {

/// The registers of one warp; [i][h] is its row 16·i + 8·h + g.
template <class Tile>
struct QueryState {
  AllRows<Tile> query;
  AllRows<Tile> grad;
  Sums<Tile> d_query;
  RowValues<Tile> lse;    // in units of log2, plus log2(1-p)
  RowValues<Tile> delta;  // (1-p)·Σ dO∘O
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
  load_all_rows<Tile>(state.query, shared, warp_row, lane);
  load_all_rows<Tile>(state.grad, shared + Tile::kOwnBytes, warp_row, lane);
  auto* statistics = static_cast<float*>(params.statistics);
  const auto keep_scale = static_cast<float>(params.keep_scale);
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
      state.lse[i][h] = (Tile::kMasks ? lse_of_masked(lse) : lse) - log2f(keep_scale);
      state.delta[i][h] = delta / keep_scale;
      if (!exists || (lane & 3) != 0) continue;
      statistics[index] = state.lse[i][h];
      statistics[params.batches * params.length + index] = state.delta[i][h];
    }
  }
}

/// Adds what the kStepRows keys from row `step`·kStepRows of the stage on give to dQ.
template <class Tile>
__device__ __forceinline__ void add_keys(const AttentionBackwardParams& params,
                                         const BackwardBlock<typename Tile::T>& block,
                                         QueryState<Tile>& state, const unsigned char* shared,
                                         const BatchMask& mask, int stage, int step, int warp_row,
                                         std::int64_t key0, int lane) {
  const std::int64_t row0 = block.row0 + warp_row;
  if (row0 >= params.length || key0 >= params.keys) return;
  if (params.is_causal && key0 >= row0 + Tile::kWarpRows) return;
  const std::uint32_t keys =
      shared_address(shared) + stage + step * Tile::kStepRows * kRowBytes<Tile>;
  Scores<Tile> score, d_weight;
  multiply_rows<Tile>(score, state.query, keys, lane);
  multiply_rows<Tile>(d_weight, state.grad, keys + Tile::kOtherBytes, lane);
  finish_query_probabilities<Tile>(params, static_cast<float>(params.scale_log2), state.lse, score,
                                   mask, block.row0 + warp_row, key0, lane, true);
  Weights<Tile> weights;
  const unsigned char* bits =
      shared + stage + Tile::kBits + warp_row * (kStageRows / 8) + step * (Tile::kStepRows / 8);
  finish_query_weights<Tile>(state.delta, score, d_weight, bits, lane, weights);
  add_weighted_rows<Tile>(state.d_query, weights, keys, lane);
}

template <class Tile>
__device__ __forceinline__ void compute_queries(const AttentionBackwardParams& params,
                                                std::int64_t tiles) {
  using T = typename Tile::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  if (block_index() >= params.batches * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<T>*>(shared + Tile::kBlock);
  if (threadIdx.x == 0) {
    block = locate_backward_block<T>(params, tiles, Tile::kRows, false, block_index());
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::uint32_t address = shared_address(shared);
  const std::int64_t rows = params.length - block.row0;

  QueryState<Tile> state{};
  std::int64_t end = params.zero ? 0 : visible_keys(params, block.row0 + Tile::kRows);
  std::int64_t first = 0;
  if constexpr (Tile::kMasks) {
    const LiveKeys live = live_keys(params, block.batch);
    first = live.first / kStageRows * kStageRows;
    // The statistics want one pass at least.
    end = max(min(end, live.end), min(end, first + 1));
  }
  const BatchMask mask = mask_of_batch<Tile>(params, block.batch);
  if (end > first) {
    copy_tile<Tile, Tile::kRows>(address, block.query + block.row0 * params.query_strides.row,
                                 params.query_strides.row, rows, static_cast<int>(params.head / 8));
    copy_tile<Tile, Tile::kRows>(
        address + Tile::kOwnBytes, block.grad + block.row0 * params.grad_strides.row,
        params.grad_strides.row, rows, static_cast<int>(params.head_v / 8));
    copy_key_stage<Tile>(params, block, address + Tile::kStages, first);
    copy_async_commit();
  }
  int stage = Tile::kStages;
  for (std::int64_t key0 = first; key0 < end; key0 += kStageRows) {
    copy_async_wait<0>();
    __syncthreads();  // this stage has come, and no warp reads the other any more
    const int next = 2 * Tile::kStages + Tile::kStageBytes - stage;
    if (key0 + kStageRows < end) {
      copy_key_stage<Tile>(params, block, address + next, key0 + kStageRows);
      copy_async_commit();
    }
    if (key0 == first) load_queries<Tile>(params, block, state, address, warp_row, lane);
#pragma unroll 1
    for (int step = 0; step < kStageRows / Tile::kStepRows; ++step) {
      add_keys<Tile>(params, block, state, shared, mask, stage, step, warp_row,
                     key0 + step * Tile::kStepRows, lane);
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
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kMinBlocks) void backward_queries_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t tiles) {
  if constexpr (kHasMma) compute_queries<Tile>(params, tiles);
}

template <class Tile>
constexpr std::size_t kSharedBytes = Tile::kBlock + sizeof(BackwardBlock<typename Tile::T>);

}  // namespace

void launch_backward_queries(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  dispatch_backward_tile(params, dtype, [&]<class Tile> {
    const std::int64_t tiles = ceil_div(params.length, Tile::kRows);
    launch(stream, "attention_backward_queries", backward_queries_kernel<Tile>,
           params.batches * tiles, Tile::kThreads, kSharedBytes<Tile>, params, tiles);
  });
}

std::int64_t backward_queries_shared_bytes(const AttentionBackwardParams& params, DType dtype) {
  std::int64_t bytes = 0;
  dispatch_backward_tile(params, dtype, [&]<class Tile> { bytes = kSharedBytes<Tile>; });
  return bytes;
}

}  // namespace tenon::cuda
