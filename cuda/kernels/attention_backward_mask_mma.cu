// The gradient of an additive mask for float16 and bfloat16, heads that are multiples of 8 up to 128; see
// attention_backward_mask.cuh. A warp multiplies its queries, and their gradients, with the keys and values
// of a tile by mma.sync, 32 at a time; the tile of the mask stays in shared memory.
#include "cuda/kernels/attention_backward_mask.cuh"
#include "cuda/kernels/attention_backward_mma.cuh"

namespace tenon::cuda {
namespace {

template <class T_, int kHead_>
struct MaskMmaTile {
  using T = T_;
  static constexpr int kHead = kHead_;
  static constexpr int kThreads = 128;
  static constexpr int kRowTiles = kHead <= 64 ? 2 : 1;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kThreads / 32 * kWarpRows;
  static constexpr int kKeys = kMaskTileKeys;
  static constexpr int kColumnTiles = 4;  // 32 keys are multiplied at a time
  static constexpr int kPadded = kKeys + 8;  // elements of a row of the mask: no two in one bank
  // Offsets in shared memory: queries, their gradients, keys, values, mask.
  static constexpr int kGrads = kRows * kHead * 2;
  static constexpr int kTileKeys = 2 * kGrads;
  static constexpr int kValues = kTileKeys + kKeys * kHead * 2;
  static constexpr int kMask = kValues + kKeys * kHead * 2;
  static constexpr int kStep = kMask + kRows * kPadded * 2;
  static constexpr int kBytes = kStep + static_cast<int>(sizeof(MaskStep<T>));
};

/// Starts copying the tile of the mask; 0 where there is none.
template <class Tile>
__device__ __forceinline__ void copy_mask(const AttentionBackwardParams& params,
                                          const MaskTilePart& part, unsigned char* shared) {
  using T = typename Tile::T;
  const AttentionOperand& strides = params.mask_strides;
  const std::int64_t row0 = part.row_owner * Tile::kRows, key0 = part.key_owner * Tile::kKeys;
  const T* first = static_cast<const T*>(params.mask) +
                   mask_matrix_offset(params, strides, part.matrix) + row0 * strides.row +
                   key0 * strides.column;
  const std::int64_t rows = params.length - row0, keys = params.keys - key0;
  const bool whole_chunks = strides.column == 1 && strides.row % 8 == 0 && params.keys % 8 == 0 &&
                            reinterpret_cast<std::uintptr_t>(first) % 16 == 0;
  const int thread = static_cast<int>(threadIdx.x);
  if (whole_chunks) {
    constexpr int kChunks = Tile::kKeys / 8;
#pragma unroll
    for (int index = thread; index < Tile::kRows * kChunks; index += Tile::kThreads) {
      const int row = index / kChunks, key = index % kChunks * 8;
      copy_async16(shared_address(shared) + (row * Tile::kPadded + key) * 2,
                   first + row * strides.row + key, row < rows && key < keys);
    }
    return;
  }
  auto* target = reinterpret_cast<T*>(shared);
#pragma unroll 8
  for (int index = thread; index < Tile::kRows * Tile::kKeys; index += Tile::kThreads) {
    const int row = index / Tile::kKeys, key = index % Tile::kKeys;
    T value{};
    if (row < rows && key < keys) value = first[row * strides.row + key * strides.column];
    target[row * Tile::kPadded + key] = value;
  }
}

/// What is read of the warp's queries: [i][h] is row 16·i + 8·h + g. `keep` has a bit for each key.
template <class Tile>
struct QueryValues {
  float lse[Tile::kRowTiles][2];
  float delta[Tile::kRowTiles][2];
  std::uint32_t keep[Tile::kRowTiles][2][Tile::kKeys / 32];
  int seen[Tile::kRowTiles][2];
};

template <class Tile>
__device__ __forceinline__ void load_query_values(const AttentionBackwardParams& params,
                                                  const MaskStep<typename Tile::T>& step,
                                                  QueryValues<Tile>& values, int warp_row,
                                                  int lane) {
  const auto* statistics = static_cast<const float*>(params.statistics);
  const auto present =
      static_cast<int>(min(params.keys - step.key0, std::int64_t{Tile::kKeys}));
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t query = step.row0 + warp_row + 16 * i + 8 * h + (lane >> 2);
      const std::int64_t index = step.batch * params.length + query;
      const bool exists = query < params.length;
      values.lse[i][h] = exists ? statistics[index] : INFINITY;
      values.delta[i][h] = exists ? statistics[params.batches * params.length + index] : 0.0F;
      values.seen[i][h] = seen_keys(params, query, step.key0, present);
#pragma unroll
      for (int word = 0; word < Tile::kKeys / 32; ++word) {
        std::uint32_t keep = 0xffffffffU;
        if (params.has_dropout && exists && step.key0 + 32 * word < params.keys) {
          keep = *reinterpret_cast<const std::uint32_t*>(
              params.keep_bits + index * params.keep_bits_stride + step.key0 / 8 + 4 * word);
        }
        values.keep[i][h][word] = keep >> (2 * (lane & 3));
      }
    }
  }
}

/// Adds dS of 32 keys, number `part` of the tile, from scores and dO·Vᵀ.
template <class Tile>
__device__ __forceinline__ void add_d_scores(const AttentionBackwardParams& params,
                                             const QueryValues<Tile>& values,
                                             const Scores<Tile>& score,
                                             const Scores<Tile>& d_weight, MaskSums<Tile>& sums,
                                             const unsigned char* mask, int warp_row, int part,
                                             int lane) {
  constexpr float kLog2E = 1.4426950408889634F;
  const auto scale = static_cast<float>(params.scale_log2);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp_row + 16 * i + 8 * h + (lane >> 2);
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
        const int key = 32 * part + 8 * j + 2 * (lane & 3);
        const float2 added = unpack_floats<typename Tile::T>(
            *reinterpret_cast<const std::uint32_t*>(mask + (row * Tile::kPadded + key) * 2));
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float offset = fmaf(c == 0 ? added.x : added.y, kLog2E, -values.lse[i][h]);
          float p = exp2_approximate(fmaf(score[i][j][2 * h + c], scale, offset));
          if (key + c >= values.seen[i][h]) p = 0;
          const bool kept = ((values.keep[i][h][part] >> (8 * j + c)) & 1U) != 0;
          sums[i][4 * part + j][2 * h + c] +=
              fmaf(kept ? p : 0.0F, d_weight[i][j][2 * h + c], -p * values.delta[i][h]);
        }
      }
    }
  }
}

/// scores = the warp's rows of a tile · columnsᵀ.
template <class Tile>
__device__ __forceinline__ void multiply_tiles(Scores<Tile>& scores, std::uint32_t rows,
                                               int warp_row, std::uint32_t columns, int lane) {
  clear_scores<Tile>(scores);
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) {
    RowFragments<Tile> fragments;
    load_rows<Tile>(fragments, rows, warp_row, lane, k);
    add_row_products<Tile>(scores, fragments, columns, lane, k);
  }
}

template <class Tile>
__device__ __forceinline__ void compute_mask(const AttentionBackwardParams& params,
                                             const MaskGradientPlan& plan, float* parts) {
  extern __shared__ __align__(1024) unsigned char shared[];
  if (block_index() >= plan.chunks * plan.matrices * plan.row_owners * plan.key_owners) return;
  const MaskTilePart part = locate_mask_tile(plan, block_index());
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::uint32_t address = shared_address(shared);
  const int chunks = static_cast<int>(params.head / 8), chunks_v = static_cast<int>(params.head_v / 8);
  copy_mask<Tile>(params, part, shared + Tile::kMask);

  MaskSums<Tile> sums = {};
  const auto copy = [&](const MaskStep<typename Tile::T>& step) {
    const std::int64_t rows = params.length - step.row0, keys = params.keys - step.key0;
    copy_tile<Tile, Tile::kRows>(address, step.query, params.query_strides.row, rows, chunks);
    copy_tile<Tile, Tile::kRows>(address + Tile::kGrads, step.grad, params.grad_strides.row, rows,
                                 chunks_v);
    copy_tile<Tile, Tile::kKeys>(address + Tile::kTileKeys, step.key, params.key_strides.row, keys,
                                 chunks);
    copy_tile<Tile, Tile::kKeys>(address + Tile::kValues, step.value, params.value_strides.row,
                                 keys, chunks_v);
  };
  const auto add = [&](const MaskStep<typename Tile::T>& step) {
    QueryValues<Tile> values;
    load_query_values<Tile>(params, step, values, warp_row, lane);
#pragma unroll
    for (int i = 0; i < Tile::kKeys / 32; ++i) {
      const int offset = i * 32 * kRowBytes<Tile>;
      Scores<Tile> score, d_weight;
      multiply_tiles<Tile>(score, address, warp_row, address + Tile::kTileKeys + offset, lane);
      multiply_tiles<Tile>(d_weight, address + Tile::kGrads, warp_row,
                           address + Tile::kValues + offset, lane);
      add_d_scores<Tile>(params, values, score, d_weight, sums, shared + Tile::kMask, warp_row, i,
                         lane);
    }
  };
  auto& step = *reinterpret_cast<MaskStep<typename Tile::T>*>(shared + Tile::kStep);
  for_each_mask_step<Tile>(params, plan, part, step, copy, add);
  write_mask_tile<Tile>(params, plan, part, sums, reinterpret_cast<float*>(shared), parts);
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, 2) void backward_mask_kernel(
    const __grid_constant__ AttentionBackwardParams params,
    const __grid_constant__ MaskGradientPlan plan, float* parts) {
  if constexpr (kHasMma) compute_mask<Tile>(params, plan, parts);
}

/// Calls f with the MaskMmaTile of a plan.
template <class T, class F>
void dispatch_tile(const MaskGradientPlan& plan, const F& f) {
  if (plan.tile_rows == 64) return f.template operator()<MaskMmaTile<T, 128>>();
  f.template operator()<MaskMmaTile<T, 64>>();
}

}  // namespace

void launch_backward_mask_mma(const AttentionBackwardParams& params, DType dtype,
                              const MaskGradientPlan& plan, float* parts, Stream stream) {
  const auto launch_of = [&]<class Tile> {
    launch_mask_kernels<Tile>(backward_mask_kernel<Tile>, params, plan, Tile::kBytes, parts,
                              stream);
  };
  if (dtype == DType::float16) return dispatch_tile<Half>(plan, launch_of);
  dispatch_tile<BFloat16>(plan, launch_of);
}

std::int64_t backward_mask_mma_shared_bytes(const MaskGradientPlan& plan) {
  std::int64_t bytes = 0;
  dispatch_tile<Half>(plan, [&]<class Tile> { bytes = Tile::kBytes; });
  return bytes;
}

}  // namespace tenon::cuda
