// The gradient of an additive mask for float32, each product of floats by three of TF32 numbers, heads that
// are multiples of 4 up to 128; see attention_backward_mask.cuh. A warp multiplies its queries, and their
// gradients, with the keys and values of a tile, 32 at a time; the tile of the mask stays in shared memory.
#include "cuda/kernels/attention_backward_mask.cuh"
#include "cuda/kernels/attention_backward_tf32x3.cuh"

namespace tenon::cuda {
namespace {

template <int kHead_>
struct MaskTf32Tile {
  using T = float;
  static constexpr int kHead = kHead_;
  static constexpr int kThreads = 128;
  static constexpr int kRowTiles = 1;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kThreads / 32 * kWarpRows;
  static constexpr int kKeys = kMaskTileKeys;
  static constexpr int kColumnTiles = 4;  // 32 keys are multiplied at a time
  static constexpr int kStages = 1;
};

/// Offsets in shared memory, in bytes: queries, their gradients, keys, values, mask.
template <class Tile>
struct MaskTf32Layout {
  static constexpr int kGrads = tile_bytes<Tile>(Tile::kRows);
  static constexpr int kTileKeys = 2 * kGrads;
  static constexpr int kValues = kTileKeys + tile_bytes<Tile>(Tile::kKeys);
  static constexpr int kMask = kValues + tile_bytes<Tile>(Tile::kKeys);
  static constexpr int kMaskStride = kPairStride<Tile::kKeys>;  // floats
  static constexpr int kSteps = kMask + Tile::kRows * kMaskStride * 4;
  static constexpr int kBytes = kSteps + 2 * static_cast<int>(sizeof(MaskStep<float>));
};

/// Adds dS of 32 keys, number `part` of the tile, from scores and dO·Vᵀ.
template <class Tile>
__device__ __forceinline__ void add_d_scores(const AttentionBackwardParams& params,
                                             const MaskStep<float>& step,
                                             const Scores<Tile>& probability,
                                             const Scores<Tile>& d_weight, MaskSums<Tile>& sums,
                                             int warp_row, int part, int lane) {
  const auto* statistics = static_cast<const float*>(params.statistics);
  const auto keep_scale = static_cast<float>(params.keep_scale);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t query = step.row0 + warp_row + 16 * i + 8 * h + (lane >> 2);
      const std::int64_t index = step.batch * params.length + query;
      const bool exists = query < params.length;
      const float delta = exists ? statistics[params.batches * params.length + index] : 0.0F;
      std::uint32_t keep = 0xffffffffU;
      if (params.has_dropout && exists && step.key0 + 32 * part < params.keys) {
        keep = *reinterpret_cast<const std::uint32_t*>(
            params.keep_bits + index * params.keep_bits_stride + step.key0 / 8 + 4 * part);
      }
      keep >>= 2 * (lane & 3);
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float d = d_weight[i][j][2 * h + c];
          d = ((keep >> (8 * j + c)) & 1U) != 0 ? d * keep_scale : 0.0F;
          sums[i][4 * part + j][2 * h + c] += probability[i][j][2 * h + c] * (d - delta);
        }
      }
    }
  }
}

/// Starts copying the tile of the mask; 0 where there is none.
template <class Tile>
__device__ __forceinline__ void copy_mask(const AttentionBackwardParams& params,
                                          const MaskTilePart& part, std::uint32_t shared) {
  const AttentionOperand& strides = params.mask_strides;
  const std::int64_t row0 = part.row_owner * Tile::kRows, key0 = part.key_owner * Tile::kKeys;
  const float* first = static_cast<const float*>(params.mask) +
                       mask_matrix_offset(params, strides, part.matrix) + row0 * strides.row +
                       key0 * strides.column;
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * Tile::kKeys; i += Tile::kThreads) {
    const int row = i / Tile::kKeys, key = i % Tile::kKeys;
    copy_async<4>(shared + (row * MaskTf32Layout<Tile>::kMaskStride + key) * 4,
                  first + row * strides.row + key * strides.column,
                  row0 + row < params.length && key0 + key < params.keys);
  }
}

/// Scores of the warp's queries and 32 keys, from key0 on, become probabilities; `mask` is the mask of them.
template <class Tile>
__device__ __forceinline__ void finish_scores(const AttentionBackwardParams& params,
                                              const MaskStep<float>& step, Scores<Tile>& score,
                                              const float* mask, int warp_row,
                                              std::int64_t key0, int lane) {
  const auto* statistics = static_cast<const float*>(params.statistics);
  constexpr int kStride = MaskTf32Layout<Tile>::kMaskStride;
  const auto scale = static_cast<float>(params.scale_log2);
  const auto present = static_cast<int>(min(params.keys - key0, std::int64_t{32}));
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t query = step.row0 + warp_row + 16 * i + 8 * h + (lane >> 2);
      const bool exists = query < params.length;
      const float lse = exists ? statistics[step.batch * params.length + query] : INFINITY;
      const int seen = seen_keys(params, query, key0, present);
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& p = score[i][j][2 * h + c];
          const int key = 8 * j + 2 * (lane & 3) + c;
          const float added = mask_in_log2(mask[(16 * i + 8 * h + (lane >> 2)) * kStride + key]);
          p = exp2_approximate(fmaf(p, scale, added - lse));
          if (key >= seen) p = 0;
        }
      }
    }
  }
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kHead <= 64 ? 2 : 1) void backward_mask_kernel(
    const __grid_constant__ AttentionBackwardParams params,
    const __grid_constant__ MaskGradientPlan plan, float* parts) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using SharedLayout = MaskTf32Layout<Tile>;
  extern __shared__ __align__(16) unsigned char shared[];
  if (block_index() >= plan.chunks * plan.matrices * plan.row_owners * plan.key_owners) return;
  const MaskTilePart part = locate_mask_tile(plan, block_index());
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::uint32_t address = shared_address(shared);
  const std::uint32_t rows_address = address + tile_bytes<Tile>(warp_row);
  const auto* mask = reinterpret_cast<const float*>(shared + SharedLayout::kMask) +
                     warp_row * SharedLayout::kMaskStride;
  copy_mask<Tile>(params, part, address + SharedLayout::kMask);

  MaskSums<Tile> sums = {};
  const auto copy = [&](const MaskStep<float>& step, int) {
    const std::int64_t rows = params.length - step.row0, keys = params.keys - step.key0;
    copy_tile<Tile, Tile::kRows>(address, step.query, params.query_strides.row, rows, params.head);
    copy_tile<Tile, Tile::kRows>(address + SharedLayout::kGrads, step.grad, params.grad_strides.row,
                                 rows, params.head_v);
    copy_tile<Tile, Tile::kKeys>(address + SharedLayout::kTileKeys, step.key,
                                 params.key_strides.row, keys, params.head);
    copy_tile<Tile, Tile::kKeys>(address + SharedLayout::kValues, step.value,
                                 params.value_strides.row, keys, params.head_v);
  };
  const auto add = [&](const MaskStep<float>& step, int) {
#pragma unroll
    for (int i = 0; i < Tile::kKeys / 32; ++i) {
      Scores<Tile> score, d_weight;
      multiply_rows<Tile>(score, rows_address,
                          address + SharedLayout::kTileKeys + tile_bytes<Tile>(32 * i), lane);
      finish_scores<Tile>(params, step, score, mask + 32 * i, warp_row, step.key0 + 32 * i, lane);
      multiply_rows<Tile>(d_weight, rows_address + SharedLayout::kGrads,
                          address + SharedLayout::kValues + tile_bytes<Tile>(32 * i), lane);
      add_d_scores<Tile>(params, step, score, d_weight, sums, warp_row, i, lane);
    }
  };
  auto& steps = *reinterpret_cast<MaskStep<float>(*)[2]>(shared + SharedLayout::kSteps);
  for_each_mask_step<Tile>(params, plan, part, steps, copy, add);
  write_mask_tile<Tile>(params, plan, part, sums, reinterpret_cast<float*>(shared), parts);
#endif
}

/// Calls f with the MaskTf32Tile of a call.
template <class F>
void dispatch_tile(const AttentionBackwardParams& params, const F& f) {
  if (params.head > 64 || params.head_v > 64) return f.template operator()<MaskTf32Tile<128>>();
  f.template operator()<MaskTf32Tile<64>>();
}

}  // namespace

void launch_backward_mask_tf32x3(const AttentionBackwardParams& params,
                                 const MaskGradientPlan& plan, float* parts, Stream stream) {
  dispatch_tile(params, [&]<class Tile> {
    launch_mask_kernels<Tile>(backward_mask_kernel<Tile>, params, plan,
                              MaskTf32Layout<Tile>::kBytes, parts, stream);
  });
}

std::int64_t backward_mask_tf32x3_shared_bytes(const AttentionBackwardParams& params) {
  std::int64_t bytes = 0;
  dispatch_tile(params, [&]<class Tile> { bytes = MaskTf32Layout<Tile>::kBytes; });
  return bytes;
}

}  // namespace tenon::cuda
