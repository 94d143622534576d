// dK and dV of attention on tensor cores; see attention_backward_mma.cuh. A warp owns some keys and
// walks over tiles of queries, with the statistics that the kernel for dQ has left.
#include "cuda/kernels/attention_backward_mma.cuh"

namespace tenon::cuda {
namespace {

template <class Tile>
struct KeyState {
  Sums<Tile> d_key;
  Sums<Tile> d_value;
  // wgmma reads A from here; mma.sync needs the registers for a second row tile.
  std::uint32_t key[Tile::kWarpgroup ? kHeadSteps<Tile> : 1][Tile::kRowTiles][4];
  std::uint32_t value[Tile::kWarpgroup ? kHeadSteps<Tile> : 1][Tile::kRowTiles][4];
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

/// The larger of x and 0; NaN stays.
__device__ __forceinline__ float clamp_at_zero(float x) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
  return result;
}

/// What dropout keeps of a probability whose sign is its decision.
template <class Tile>
__device__ __forceinline__ float kept(float probability) {
  return Tile::kDrops ? clamp_at_zero(probability) : probability;
}

/// Gives the probabilities of what dropout drops a minus sign: a register holds both, P and K.
template <class Tile>
__device__ __forceinline__ void mark_dropped(Scores<Tile>& probability, const unsigned char* bits,
                                             int lane) {
  using Word = std::conditional_t<Tile::kRowTiles == 2, std::uint32_t, std::uint16_t>;
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int query = 8 * j + 2 * (lane & 3) + c;
      const std::uint32_t word = *reinterpret_cast<const Word*>(bits + query * (Tile::kRows / 8));
#pragma unroll
      for (int e = 0; e < 2 * Tile::kRowTiles; ++e) {
        // The decision on the warp's key 8·e + g, moved to the top.
        const std::uint32_t decision = word << (31 - 8 * e - (lane >> 2));
        float& p = probability[e / 2][j][2 * (e % 2) + c];
        p = __uint_as_float(__float_as_uint(p) | (~decision & 0x80000000U));
      }
    }
  }
}

/// Scores of the warp's keys (rows) and kStepRows queries to probabilities over 1-p, and what dropout
/// keeps of them, rounded, to weights.
template <class Tile>
__device__ __forceinline__ void finish_probabilities(const AttentionBackwardParams& params,
                                                     Scores<Tile>& score, const float* lse,
                                                     const unsigned char* bits, std::int64_t row0,
                                                     std::int64_t query0, int lane,
                                                     Weights<Tile>& weights) {
  const auto scale = static_cast<float>(params.scale_log2);
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 offset = *reinterpret_cast<const float2*>(lse + 8 * j + 2 * (lane & 3));
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        score[i][j][e] =
            exp2_approximate(fmaf(score[i][j][e], scale, e % 2 == 0 ? -offset.x : -offset.y));
      }
    }
  }
  if (params.is_causal && query0 < row0 + Tile::kWarpRows - 1) {
    // Query 8·j + 2·t + c is seen by keys up to `reach` rows after the warp's first.
    const int reach = static_cast<int>(query0 - row0) + 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = 16 * i + 8 * (e / 2) + (lane >> 2);
          if (row > reach + 8 * j + e % 2) score[i][j][e] = 0;
        }
      }
    }
  }
  if constexpr (Tile::kDrops) mark_dropped<Tile>(score, bits, lane);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        weights[i][j][h] = pack_floats<typename Tile::T>(kept<Tile>(score[i][j][2 * h]),
                                                         kept<Tile>(score[i][j][2 * h + 1]));
      }
    }
  }
}

/// dS, rounded, of the same tile.
template <class Tile>
__device__ __forceinline__ void finish_key_weights(const Scores<Tile>& probability,
                                                   const Scores<Tile>& d_weight, const float* delta,
                                                   int lane, Weights<Tile>& weights) {
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 offset = *reinterpret_cast<const float2*>(delta + 8 * j + 2 * (lane & 3));
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float d_score[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float p = probability[i][j][2 * h + c];
          d_score[c] = fmaf(kept<Tile>(p), d_weight[i][j][2 * h + c],
                            -fabsf(p) * (c == 0 ? offset.x : offset.y));
        }
        weights[i][j][h] = pack_floats<typename Tile::T>(d_score[0], d_score[1]);
      }
    }
  }
}

/// scores = the warp's rows of a tile · columnsᵀ; wgmma takes them from registers.
template <class Tile>
__device__ __forceinline__ void multiply_own(
    Scores<Tile>& scores,
    const std::uint32_t (&own)[Tile::kWarpgroup ? kHeadSteps<Tile> : 1][Tile::kRowTiles][4],
    std::uint32_t tile, int warp_row, std::uint32_t columns, int lane) {
  if constexpr (Tile::kWarpgroup) {
    multiply_rows<Tile>(scores, own, columns, lane);
  } else {
    clear_scores<Tile>(scores);
#pragma unroll
    for (int k = 0; k < kHeadSteps<Tile>; ++k) {
      RowFragments<Tile> rows;
      load_rows<Tile>(rows, tile, warp_row, lane, k);
      add_row_products<Tile>(scores, rows, columns, lane, k);
    }
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
  const std::int64_t group0 = block.row0 + warp_row / Tile::kGroupRows * Tile::kGroupRows;
  if (group0 >= params.keys || query0 >= params.length) return;
  if (params.is_causal && query0 + Tile::kStepRows <= group0) return;
  const std::uint32_t address = shared_address(shared);
  const std::uint32_t queries = address + stage + step * Tile::kStepRows * kRowBytes<Tile>;
  const std::uint32_t grads = queries + Tile::kOtherBytes;
  const std::uint32_t values = address + Tile::kOwnBytes;
  const auto* lse =
      reinterpret_cast<const float*>(shared + stage + Tile::kStatistics) + step * Tile::kStepRows;
  const unsigned char* bits =
      shared + stage + Tile::kBits + step * Tile::kStepRows * (Tile::kRows / 8) + warp_row / 8;

  // With wgmma a product runs while the one before is finished; mma.sync has no registers for that.
  Scores<Tile> score, d_weight;
  Weights<Tile> kept, d_score;
  multiply_own<Tile>(score, state.key, address, warp_row, queries, lane);
  if constexpr (Tile::kWarpgroup) {
    multiply_own<Tile>(d_weight, state.value, values, warp_row, grads, lane);
  }
  wait_for<Tile, 1>(score);
  finish_probabilities<Tile>(params, score, lse, bits, block.row0 + warp_row, query0, lane, kept);
  multiply_weights<Tile>(state.d_value, kept, grads, lane);
  if constexpr (!Tile::kWarpgroup) {
    multiply_own<Tile>(d_weight, state.value, values, warp_row, grads, lane);
  }
  wait_for<Tile, 1>(d_weight);
  finish_key_weights<Tile>(score, d_weight, lse + kStageRows, lane, d_score);
  multiply_weights<Tile>(state.d_key, d_score, queries, lane);
  wait_for<Tile, 0>(state.d_value, state.d_key);
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

template <class Tile>
__device__ __forceinline__ void compute_keys(const AttentionBackwardParams& params,
                                             std::int64_t tiles) {
  using T = typename Tile::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  if (block_index() >= params.batches * tiles) return;
  auto& block = *reinterpret_cast<BackwardBlock<T>*>(shared + Tile::kBlock);
  if (threadIdx.x == 0) block = locate_backward_block<T>(params, tiles, Tile::kRows, false);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = uniform_warp() * Tile::kWarpRows;
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
    wait_for_stage<Tile>();
    const int next = 2 * Tile::kStages + Tile::kStageBytes - stage;
    if (query0 + kStageRows < end) {
      copy_query_stage<Tile>(params, block, address + next, query0 + kStageRows);
      copy_async_commit();
    }
    if constexpr (Tile::kWarpgroup) {
      if (query0 == first) {
        load_all_rows<Tile>(state.key, address, warp_row, lane);
        load_all_rows<Tile>(state.value, address + Tile::kOwnBytes, warp_row, lane);
      }
    }
#pragma unroll 1
    for (int step = 0; step < kStageRows / Tile::kStepRows; ++step) {
      add_queries<Tile>(params, block, state, shared, stage, step, warp_row,
                        query0 + step * Tile::kStepRows, lane);
    }
    stage = next;
  }
  write_keys<Tile>(params, block, state, shared, warp_row, lane);
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kMinBlocks) void backward_keys_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t tiles) {
  if constexpr (runs_here<Tile>) compute_keys<Tile>(params, tiles);
}

}  // namespace

void launch_backward_keys(const AttentionBackwardParams& params, DType dtype, bool warpgroup,
                          Stream stream) {
  dispatch_backward_tile(params, dtype, warpgroup, [&]<class Tile> {
    const std::int64_t tiles = ceil_div(params.keys, Tile::kRows);
    launch(stream, "attention_backward_keys", backward_keys_kernel<Tile>, params.batches * tiles,
           Tile::kThreads, Tile::kBlock + sizeof(BackwardBlock<typename Tile::T>), params, tiles);
  });
}

}  // namespace tenon::cuda
