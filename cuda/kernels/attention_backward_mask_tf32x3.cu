// The gradient of an additive mask for float32, each product of floats by three of TF32 numbers, heads that
// are multiples of 4 up to 128; see attention_backward_mask.cuh. A warp multiplies its queries, and their
// gradients, with the keys and values of a tile, 32 at a time.
#include "cuda/kernels/attention_backward_mask.cuh"
#include "cuda/kernels/attention_backward_tf32x3.cuh"

namespace tenon::cuda {
namespace {

template <int kHead_>
struct MaskTf32Tile {
  using T = float;
  static constexpr int kHead = kHead_;
  static constexpr int kThreads = 128;
  static constexpr int kRowTiles = kHead <= 64 ? 2 : 1;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kThreads / 32 * kWarpRows;
  static constexpr int kKeys = kMaskTileKeys;
  static constexpr int kColumnTiles = 4;  // 32 keys are multiplied at a time
};

/// Offsets in shared memory, in bytes, after the queries.
template <class Tile>
struct MaskTf32Layout {
  static constexpr int kGrads = tile_bytes<Tile>(Tile::kRows);
  static constexpr int kTileKeys = 2 * kGrads;
  static constexpr int kValues = kTileKeys + tile_bytes<Tile>(Tile::kKeys);
  static constexpr int kStep = kValues + tile_bytes<Tile>(Tile::kKeys);
  static constexpr int kBytes = kStep + static_cast<int>(sizeof(MaskStep<float>));
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

/// Scores of the warp's queries and 32 keys, from key0 on, become probabilities.
template <class Tile>
__device__ __forceinline__ void finish_scores(const AttentionBackwardParams& params,
                                              const MaskStep<float>& step, Scores<Tile>& score,
                                              const Scores<Tile>& added, int warp_row,
                                              std::int64_t key0, int lane) {
  const auto* statistics = static_cast<const float*>(params.statistics);
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
          p = exp2_approximate(fmaf(p, scale, added[i][j][2 * h + c] - lse));
          if (8 * j + 2 * (lane & 3) + c >= seen) p = 0;
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
  using Layout = MaskTf32Layout<Tile>;
  extern __shared__ __align__(16) unsigned char shared[];
  if (block_index() >= plan.chunks * plan.matrices * plan.row_owners * plan.key_owners) return;
  const MaskTilePart part = locate_mask_tile(plan, block_index());
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::uint32_t address = shared_address(shared);
  const std::uint32_t rows_address = address + tile_bytes<Tile>(warp_row);
  const char* mask = static_cast<const char*>(params.mask) +
                     mask_matrix_offset(params, params.mask_strides, part.matrix) * 4;

  MaskSums<Tile> sums = {};
  const auto copy = [&](const MaskStep<float>& step) {
    const std::int64_t rows = params.length - step.row0, keys = params.keys - step.key0;
    copy_tile<Tile, Tile::kRows>(address, step.query, params.query_strides.row, rows, params.head);
    copy_tile<Tile, Tile::kRows>(address + Layout::kGrads, step.grad, params.grad_strides.row,
                                 rows, params.head_v);
    copy_tile<Tile, Tile::kKeys>(address + Layout::kTileKeys, step.key, params.key_strides.row,
                                 keys, params.head);
    copy_tile<Tile, Tile::kKeys>(address + Layout::kValues, step.value, params.value_strides.row,
                                 keys, params.head_v);
  };
  const auto add = [&](const MaskStep<float>& step) {
#pragma unroll
    for (int i = 0; i < Tile::kKeys / 32; ++i) {
      Scores<Tile> score, added, d_weight;
      load_mask<Tile>(params,
                      part_of_mask(params, mask, step.row0 + warp_row, step.key0 + 32 * i), added,
                      lane);
      multiply_rows<Tile>(score, rows_address,
                          address + Layout::kTileKeys + tile_bytes<Tile>(32 * i), lane);
      finish_scores<Tile>(params, step, score, added, warp_row, step.key0 + 32 * i, lane);
      multiply_rows<Tile>(d_weight, rows_address + Layout::kGrads,
                          address + Layout::kValues + tile_bytes<Tile>(32 * i), lane);
      add_d_scores<Tile>(params, step, score, d_weight, sums, warp_row, i, lane);
    }
  };
  auto& step = *reinterpret_cast<MaskStep<float>*>(shared + Layout::kStep);
  for_each_mask_step<Tile>(params, plan, part, step, copy, add);
  write_mask_tile<Tile>(params, plan, part, sums, reinterpret_cast<float*>(shared), parts);
#endif
}

/// Calls f with the MaskTf32Tile of a plan.
template <class F>
void dispatch_tile(const MaskGradientPlan& plan, const F& f) {
  if (plan.tile_rows == 64) return f.template operator()<MaskTf32Tile<128>>();
  f.template operator()<MaskTf32Tile<64>>();
}

}  // namespace

void launch_backward_mask_tf32x3(const AttentionBackwardParams& params,
                                 const MaskGradientPlan& plan, float* parts, Stream stream) {
  dispatch_tile(plan, [&]<class Tile> {
    launch_mask_kernels<Tile>(backward_mask_kernel<Tile>, params, plan,
                              MaskTf32Layout<Tile>::kBytes, parts, stream);
  });
}

std::int64_t backward_mask_tf32x3_shared_bytes(const MaskGradientPlan& plan) {
  std::int64_t bytes = 0;
  dispatch_tile(plan, [&]<class Tile> { bytes = MaskTf32Layout<Tile>::kBytes; });
  return bytes;
}

}  // namespace tenon::cuda
