// FlashAttention-2 with ordinary multiply-adds: softmax(Q·Kᵀ·scale + mask)·V for every floating
// dtype, any head sizes and strides. 16-bit floats compute in float32, float64 in float64.
//
// A block of 128 threads owns 64 query rows and a slice of at most kSlice columns of the value; it
// walks over tiles of kKeys keys. Thread (y, x) = (tid / 16, tid % 16) holds rows y + 8·i and keys
// x + 16·j of the scores. All shared memory reads are 16 bytes a thread: rows of query and key are
// read along the head, rows padded by 16 bytes so that neighbouring rows start in different banks.
// A head longer than kDepth is multiplied in steps; a value longer than kSlice takes several blocks.
#include "cuda/kernels/attention_simt.cuh"

namespace tenon::cuda {
namespace {

/// Compile-time facts of one kernel.
template <class C_, int kSlice_, int kKeys_, int kDepth_>
struct SimtTile {
  using C = C_;
  static constexpr int kSlice = kSlice_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kDepth = kDepth_;
  static constexpr int kLength = 16 / static_cast<int>(sizeof(C));  // elements of a 16-byte read
  static constexpr int kThreadColumns = kKeys / kAcross;
  static constexpr int kColumnSets =
      kSlice / (kAcross * kLength);  // 16-byte pieces of a row a thread
  static constexpr int kHeadStride = kDepth + kLength;
  static constexpr int kWeightStride = kKeys + kLength;
  struct Inputs {
    alignas(16) C query[kSimtRows * kHeadStride];
    alignas(16) C key[kKeys * kHeadStride];
    alignas(16) C value[kKeys * kSlice];
  };
  struct Shared {
    union {
      Inputs inputs;
      C output[kSimtRows * kSlice];  // at the end
    };
    alignas(16) C probability[kSimtRows * kWeightStride];  // before that, the mask
    AttentionBlock<char> block;
  };
  static_assert(sizeof(Inputs) >= sizeof(C) * kSimtRows * kSlice);
};

/// The registers of one thread; index i is row y + 8·i of the block.
template <class Tile>
struct SimtState {
  typename Tile::C output[kThreadRows][Tile::kColumnSets][Tile::kLength];
  typename Tile::C top[kThreadRows];  // running maximum, in units of log2
  typename Tile::C sum[kThreadRows];  // of the columns that this thread holds
};

/// What the scores left by finish_scores are still to be multiplied by: the scale, when maximum and
/// mask do not depend on it, so that scaling and subtracting the maximum round once together.
template <class C>
__device__ __forceinline__ C late_scale(const AttentionParams& params) {
  const C scale = static_cast<C>(params.scale_log2);
  return scale > C(0) && params.mask_kind != AttentionMask::additive ? scale : C(1);
}

/// Applies scale (unless late_scale) and the staged mask, and hides keys past the end or after the
/// query.
template <class Tile>
__device__ __forceinline__ void finish_scores(
    const AttentionParams& params, const typename Tile::C* mask,
    typename Tile::C (&score)[kThreadRows][Tile::kThreadColumns], std::int64_t row0,
    std::int64_t key0, int y, int x) {
  using C = typename Tile::C;
  const C late = late_scale<C>(params);
  const C scale = late == C(1) ? static_cast<C>(params.scale_log2) : C(1);
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) score[i][j] *= scale;
  }
  add_mask<Tile>(params.mask_kind, mask, score, y, x);
  // Keys of this tile that exist; a row sees those before `seen`.
  const auto present = static_cast<int>(min(params.keys - key0, std::int64_t{Tile::kKeys}));
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int seen = seen_keys(params, row0 + 8 * i, key0, present);
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) {
      if (x + kAcross * j >= seen) score[i][j] = -static_cast<C>(INFINITY);
    }
  }
}

/// Keep decisions of the thread's scores, one Philox call per 8 columns and none twice: of the 8
/// threads that share columns 8·a …, thread u draws row i = u; byte j of its word are keys 16·j + 8·a.
template <class Tile>
__device__ __forceinline__ std::uint32_t draw_dropout(const AttentionParams& params,
                                                      const AttentionBlock<char>& block,
                                                      std::int64_t first_query, std::int64_t key0,
                                                      int x) {
  const std::int64_t query = first_query + 8 * (x % 8);
  const std::int64_t row = block.batch * params.length + query;
  const DropoutKey dropout_key = with_forward(params.dropout_key, block.forward);
  std::uint32_t bits = 0;
#pragma unroll
  for (int j = 0; j < Tile::kThreadColumns; ++j) {
    const std::int64_t group = (key0 + kAcross * j + (x & 8)) / 8;
    const std::uint32_t drawn = dropout_bits8(dropout_key, row, group, params.dropout_threshold);
    bits |= drawn << (8 * j);
    // Every block of the value's slices draws the same bits.
    if (params.keep_bits != nullptr && query < params.length) {
      params.keep_bits[row * params.keep_bits_stride + group] = static_cast<std::uint8_t>(drawn);
    }
  }
  return bits;
}

/// Online softmax: scores become probabilities relative to state.top, in shared memory.
template <class Tile>
__device__ __forceinline__ void update_softmax(
    const AttentionParams& params, typename Tile::Shared& shared, SimtState<Tile>& state,
    const typename Tile::C (&score)[kThreadRows][Tile::kThreadColumns], std::int64_t row0,
    std::int64_t key0, int y, int x) {
  using C = typename Tile::C;
  const C scale = late_scale<C>(params);
  const std::uint32_t drawn =
      params.has_dropout ? draw_dropout<Tile>(params, shared.block, row0, key0, x) : 0;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    C top = score[i][0];
#pragma unroll
    for (int j = 1; j < Tile::kThreadColumns; ++j) top = max(top, score[i][j]);
    top = max(state.top[i], scale * reduce_across(top, [](C a, C b) { return max(a, b); }));
    // A row without visible keys so far: any finite offset gives probabilities of 0.
    const C offset = top == -static_cast<C>(INFINITY) ? C(0) : top;
    const C factor = exp2(state.top[i] - offset);
    state.top[i] = top;
    state.sum[i] *= factor;
#pragma unroll
    for (int set = 0; set < Tile::kColumnSets; ++set) {
#pragma unroll
      for (int c = 0; c < Tile::kLength; ++c) state.output[i][set][c] *= factor;
    }
    const std::uint32_t keep =
        params.has_dropout ? __shfl_sync(kFullWarp, drawn, i, 8) >> (x % 8) : 0xffffffffU;
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) {
      const C p = exp2(fma(score[i][j], scale, -offset));
      state.sum[i] += p;
      shared.probability[(y + 8 * i) * Tile::kWeightStride + x + kAcross * j] =
          (keep >> (8 * j)) & 1U ? p : C(0);
    }
  }
}

/// Stages query and key step by step along the head and multiplies them.
template <class Tile>
__device__ __forceinline__ void score_keys(
    const AttentionParams& params, const Elements<typename Tile::C>& elements,
    const AttentionBlock<char>& block, typename Tile::Inputs& shared,
    typename Tile::C (&score)[kThreadRows][Tile::kThreadColumns], std::int64_t key0, int y, int x) {
  const std::int64_t block_row = block.row_block * kSimtRows;
  // An empty head still needs the barriers around the staged values.
  for (std::int64_t depth0 = 0; depth0 == 0 || depth0 < params.head; depth0 += Tile::kDepth) {
    if (depth0 > 0) __syncthreads();
    if (key0 == 0 || params.head > Tile::kDepth) {
      stage_tile<kSimtRows, Tile::kDepth, Tile::kHeadStride>(
          shared.query, elements,
          block.query + (block_row * params.query_strides.row + depth0) * elements.bytes(),
          params.query_strides.row, params.length - block_row, params.head - depth0);
    }
    stage_tile<Tile::kKeys, Tile::kDepth, Tile::kHeadStride>(
        shared.key, elements,
        block.key + (key0 * params.key_strides.row + depth0) * elements.bytes(),
        params.key_strides.row, params.keys - key0, params.head - depth0);
    __syncthreads();
    const auto depth =
        static_cast<int>(min(params.head - depth0, static_cast<std::int64_t>(Tile::kDepth)));
    add_row_products<Tile>(shared.query, shared.key, score, depth, y, x);
  }
}

/// Normalizes the rows and writes them and their log-sum-exp.
template <class Tile>
__device__ __forceinline__ void write_output(const AttentionParams& params,
                                             const Elements<typename Tile::C>& elements,
                                             typename Tile::Shared& shared, SimtState<Tile>& state,
                                             std::int64_t column0, int y, int x) {
  using C = typename Tile::C;
  const AttentionBlock<char>& block = shared.block;
  const std::int64_t row0 = block.row_block * kSimtRows;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const C sum = reduce_across(state.sum[i], [](C a, C b) { return a + b; });
    const C factor = row_factor(params, sum);
    const std::int64_t row = row0 + y + 8 * i;
    if (params.lse != nullptr && column0 == 0 && x == 0 && row < params.length) {
      static_cast<C*>(params.lse)[block.batch * params.length + row] =
          (state.top[i] + log2(sum)) * static_cast<C>(kLn2);
    }
#pragma unroll
    for (int set = 0; set < Tile::kColumnSets; ++set) {
#pragma unroll
      for (int c = 0; c < Tile::kLength; ++c) state.output[i][set][c] *= factor;
    }
  }
  __syncthreads();  // the last tiles are read no more
  const AttentionOperand& strides = params.output_strides;
  const std::int64_t first = row0 * strides.row + column0 * strides.column;
  store_tile<Tile>({block.output + first * elements.bytes(), strides.row, strides.column,
                    params.length - row0, params.head_v - column0},
                   elements, state.output, shared.output, y, x);
}

template <class Tile>
__global__ __launch_bounds__(kSimtThreads) void flash_simt_kernel(
    const __grid_constant__ AttentionParams params, std::int64_t slices,
    Elements<typename Tile::C> elements) {
  using C = typename Tile::C;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<typename Tile::Shared*>(shared_bytes);
  if (block_index() >= params.batches * params.row_blocks * slices) return;
  const std::int64_t tile_index = divide(block_index(), slices);
  const std::int64_t column0 = (block_index() - tile_index * slices) * Tile::kSlice;
  auto& block = shared.block;
  if (threadIdx.x == 0) block = locate_block<char>(params, tile_index, elements.bytes());
  __syncthreads();
  const int y = static_cast<int>(threadIdx.x) / kAcross;
  const int x = static_cast<int>(threadIdx.x) % kAcross;
  const std::int64_t block_row = block.row_block * kSimtRows, row0 = block_row + y;

  SimtState<Tile> state{};
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) state.top[i] = -static_cast<C>(INFINITY);

  const std::int64_t key_end = visible_keys(params, (block.row_block + 1) * kSimtRows);
  for (std::int64_t key0 = 0; key0 < key_end; key0 += Tile::kKeys) {
    if (key0 > 0) __syncthreads();
    const std::int64_t present = params.keys - key0;
    stage_tile<Tile::kKeys, Tile::kSlice, Tile::kSlice>(
        shared.inputs.value, elements,
        block.value + (key0 * params.value_strides.row + column0) * elements.bytes(),
        params.value_strides.row, present, params.head_v - column0);
    if (params.mask_kind != AttentionMask::none) {
      const AttentionOperand& mask = params.mask_strides;
      const std::int64_t first = block_row * mask.row + key0 * mask.column;
      const int width = params.mask_kind == AttentionMask::boolean ? 1 : elements.bytes();
      stage_mask<Tile::kKeys, Tile::kWeightStride>(shared.probability, elements, params.mask_kind,
                                                   block.mask + first * width, mask.row,
                                                   mask.column, params.length - block_row, present);
    }
    C score[kThreadRows][Tile::kThreadColumns] = {};
    score_keys<Tile>(params, elements, block, shared.inputs, score, key0, y, x);
    finish_scores<Tile>(params, shared.probability, score, row0, key0, y, x);
    update_softmax<Tile>(params, shared, state, score, row0, key0, y, x);
    __syncwarp();  // the 16 threads of a row are in one warp
    add_weighted_rows<Tile>(shared.probability, shared.inputs.value, state.output,
                            static_cast<int>(min(present, static_cast<std::int64_t>(Tile::kKeys))),
                            y, x);
  }
  write_output<Tile>(params, elements, shared, state, column0, y, x);
}

template <class Tile>
void launch_tile(const AttentionParams& params, DType dtype, Stream stream) {
  AttentionParams launched = params;
  launched.row_blocks = ceil_div(params.length, kSimtRows);
  // An empty value has a log-sum-exp all the same.
  const std::int64_t slices = params.head_v == 0 ? 1 : ceil_div(params.head_v, Tile::kSlice);
  launch(stream, "flash_simt", flash_simt_kernel<Tile>,
         params.batches * launched.row_blocks * slices, kSimtThreads, sizeof(typename Tile::Shared),
         launched, slices, {dtype});
}

/// Calls f with the SimtTile of a tiling.
template <class F>
void dispatch_tile(DType dtype, const AttentionTiling& tiling, const F& f) {
  if (dtype == DType::float64) return f.template operator()<SimtTile<double, 64, 32, 32>>();
  if (tiling.head == 64) return f.template operator()<SimtTile<float, 64, 64, 64>>();
  f.template operator()<SimtTile<float, 128, 64, 64>>();
}

}  // namespace

void launch_flash_simt(const AttentionParams& params, DType dtype, const AttentionTiling& tiling,
                       Stream stream) {
  dispatch_tile(dtype, tiling, [&]<class Tile>() { launch_tile<Tile>(params, dtype, stream); });
}

std::int64_t flash_simt_shared_bytes(DType dtype, const AttentionTiling& tiling) {
  std::int64_t bytes = 0;
  dispatch_tile(dtype, tiling, [&]<class Tile>() { bytes = sizeof(typename Tile::Shared); });
  return bytes;
}

}  // namespace tenon::cuda
