// dK and dV of attention on tensor cores; see attention_backward_mma.cuh. A warp owns some keys and
// walks over tiles of queries, with the statistics that the kernel for dQ has left.
#include "cuda/kernels/attention_backward_mma.cuh"
#include "cuda/kernels/attention_backward_scores.cuh"

namespace tenon::cuda {
namespace {

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
  const std::int64_t rows = params.length - query;
  copy_tile<Tile, kStageRows>(stage, block.query + query * params.query_strides.row,
                              params.query_strides.row, rows, static_cast<int>(params.head / 8));
  copy_tile<Tile, kStageRows>(stage + Tile::kOtherBytes,
                              block.grad + query * params.grad_strides.row, params.grad_strides.row,
                              rows, static_cast<int>(params.head_v / 8));
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread % kStageRows;
  const std::int64_t index = block.batch * params.length + query + row;
  if (thread < 2 * kStageRows) {
    const std::int64_t which = thread < kStageRows ? 0 : params.batches * params.length;
    copy_async<4>(stage + Tile::kStatistics + thread * 4,
                  static_cast<const float*>(params.statistics) + which + index, row < rows);
  }
  if constexpr (Tile::kDrops) {
    constexpr int kBytes = Tile::kRows / 8;  // of one query
    if (thread < kStageRows) {
      copy_async<kBytes>(stage + Tile::kBits + row * kBytes,
                         params.keep_bits + index * params.keep_bits_stride + block.row0 / 8,
                         row < rows);
    }
  }
}

/// scores = the warp's rows of a tile · columnsᵀ; two row tiles leave no registers to keep the rows in.
template <class Tile>
__device__ __forceinline__ void multiply_own(Scores<Tile>& scores, std::uint32_t tile, int warp_row,
                                             std::uint32_t columns, int lane) {
  clear_scores<Tile>(scores);
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
                                            const BatchMask& mask, int stage, int step,
                                            int warp_row, std::int64_t query0, int lane) {
  const std::int64_t row0 = block.row0 + warp_row;
  if (row0 >= params.keys || query0 >= params.length) return;
  if (params.is_causal && query0 + Tile::kStepRows <= row0) return;
  const std::uint32_t address = shared_address(shared);
  const std::uint32_t queries = address + stage + step * Tile::kStepRows * kRowBytes<Tile>;
  const std::uint32_t grads = queries + Tile::kOtherBytes;
  const std::uint32_t values = address + Tile::kOwnBytes;
  const auto* lse =
      reinterpret_cast<const float*>(shared + stage + Tile::kStatistics) + step * Tile::kStepRows;
  const unsigned char* bits =
      shared + stage + Tile::kBits + step * Tile::kStepRows * (Tile::kRows / 8) + warp_row / 8;

  Scores<Tile> score, d_weight;
  Weights<Tile> kept, d_score;
  multiply_own<Tile>(score, address, warp_row, queries, lane);
  finish_key_probabilities<Tile>(params, static_cast<float>(params.scale_log2), score, lse, bits,
                                 mask, row0, query0, lane, params.is_causal);
  pack_kept<Tile>(score, kept);
  add_weighted_rows<Tile>(state.d_value, kept, grads, lane);
  multiply_own<Tile>(d_weight, values, warp_row, grads, lane);
  finish_key_weights<Tile>(score, d_weight, lse + kStageRows, lane, d_score);
  add_weighted_rows<Tile>(state.d_key, d_score, queries, lane);
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
    value_factor[i][0] = value_factor[i][1] = 1;
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

/// Adds what the queries of one batch give.
template <class Tile>
__device__ __forceinline__ void add_batch(const AttentionBackwardParams& params,
                                          const BackwardBlock<typename Tile::T>& block,
                                          KeyState<Tile>& state, const unsigned char* shared,
                                          int warp_row, int lane) {
  const std::uint32_t address = shared_address(shared);
  // Causal: key j is seen by queries from j on; tiles of keys start at multiples of kStageRows.
  const std::int64_t first = params.is_causal ? block.row0 : 0;
  std::int64_t end = params.zero ? 0 : params.length;
  if constexpr (Tile::kMasks) {
    const LiveKeys live = live_keys(params, block.batch);
    if (block.row0 >= live.end || block.row0 + Tile::kRows <= live.first) end = 0;
  }
  const BatchMask mask = mask_of_batch<Tile>(params, block.batch);
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
    __syncthreads();  // this stage has come, and no warp reads the other any more
    const int next = 2 * Tile::kStages + Tile::kStageBytes - stage;
    if (query0 + kStageRows < end) {
      copy_query_stage<Tile>(params, block, address + next, query0 + kStageRows);
      copy_async_commit();
    }
#pragma unroll 1
    for (int step = 0; step < kStageRows / Tile::kStepRows; ++step) {
      add_queries<Tile>(params, block, state, shared, mask, stage, step, warp_row,
                        query0 + step * Tile::kStepRows, lane);
    }
    stage = next;
  }
}

template <class Tile>
__device__ __forceinline__ void compute_keys(const AttentionBackwardParams& params,
                                             std::int64_t tiles) {
  using T = typename Tile::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  if (block_index() >= tiled_batches(params, true) * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<T>*>(shared + Tile::kBlock);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;

  KeyState<Tile> state{};
#pragma unroll 1
  for (std::int64_t member = 0; member < params.group; ++member) {
    __syncthreads();  // the member before this one is read no more
    if (threadIdx.x == 0) {
      block = locate_backward_block<T>(params, tiles, Tile::kRows, true, block_index(), member);
    }
    __syncthreads();
    add_batch<Tile>(params, block, state, shared, warp_row, lane);
  }
  write_keys<Tile>(params, block, state, shared, warp_row, lane);
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kMinBlocks) void backward_keys_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t tiles) {
  if constexpr (kHasMma) compute_keys<Tile>(params, tiles);
}

template <class Tile>
constexpr std::size_t kSharedBytes = Tile::kBlock + sizeof(BackwardBlock<typename Tile::T>);

}  // namespace

void launch_backward_keys(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  dispatch_backward_tile(params, dtype, [&]<class Tile> {
    const std::int64_t tiles = ceil_div(params.keys, Tile::kRows);
    launch(stream, "attention_backward_keys", backward_keys_kernel<Tile>,
           tiled_batches(params, true) * tiles, Tile::kThreads, kSharedBytes<Tile>, params, tiles);
  });
}

std::int64_t backward_keys_shared_bytes(const AttentionBackwardParams& params, DType dtype) {
  std::int64_t bytes = 0;
  dispatch_backward_tile(params, dtype, [&]<class Tile> { bytes = kSharedBytes<Tile>; });
  return bytes;
}

}  // namespace tenon::cuda
