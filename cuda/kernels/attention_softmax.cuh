// Online softmax on C fragments of scores, as mma.sync leaves them in the registers of a warp: lane
// 4·g + t holds in score[i][j][2·h + c] row 16·i + 8·h + g and key 8·j + 2·t + c.
#pragma once

#include "cuda/device/mma.cuh"
#include "cuda/kernels/attention_common.cuh"

namespace tenon::cuda {

/// A row's maximum may lag by this many powers of two: results are exact all the same, and the
/// accumulators are rescaled a few times a row instead of once a tile. 2^8 fits float16.
inline constexpr float kMaxLag = 8.0F;

/// [i][h] is row 16·i + 8·h + g.
template <int kRowTiles>
struct OnlineSoftmax {
  float top[kRowTiles][2];  // running maximum, in units of log2
  float sum[kRowTiles][2];  // of the columns that this lane holds
};

/// Applies scale and mask unless kPlain, and hides keys past the end or after the query. `row0` is the
/// warp's first query, elements of the mask are of type T.
template <class T, bool kPlain, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void hide_scores(const AttentionParams& params, const char* mask,
                                            float (&score)[kRowTiles][kColumnTiles][4],
                                            std::int64_t row0, std::int64_t key0, int lane) {
  constexpr int kKeys = 8 * kColumnTiles;
  const bool edge = key0 + kKeys > params.keys || (params.is_causal && key0 + kKeys - 1 > row0);
  const bool masked = !kPlain && params.mask_kind != AttentionMask::none;
  const auto scale = static_cast<float>(params.scale_log2);
  if (!edge && kPlain) return;
  // Keys of this tile that exist; a row sees those before `seen`.
  const auto present = static_cast<int>(min(params.keys - key0, std::int64_t{kKeys}));
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t row = row0 + 16 * i + 8 * h + (lane >> 2);
      const int seen = seen_keys(params, row, key0, present);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 8 * j + 2 * (lane & 3) + c;
          float& s = score[i][j][2 * h + c];
          if constexpr (!kPlain) s *= scale;
          if (masked && column < seen && row < params.length) {
            s = apply_mask<T>(params, mask, row, key0 + column, s);
          }
          if (column >= seen) s = -INFINITY;
        }
      }
    }
  }
}

/// Scores times `scale`, plus the bias of each key; `bias` is that of the tile's first.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void add_key_bias(float (&score)[kRowTiles][kColumnTiles][4],
                                             const float* bias, float scale, int lane) {
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) {
    const float2 pair = __ldg(reinterpret_cast<const float2*>(bias + 8 * j + 2 * (lane & 3)));
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        score[i][j][e] = fmaf(score[i][j][e], scale, e % 2 == 0 ? pair.x : pair.y);
      }
    }
  }
}

/// Raises the running maxima to those of score·scale where they lag too far behind, and rescales what
/// was summed relative to them.
template <int kRowTiles, int kColumnTiles, int kHeadTiles>
__device__ __forceinline__ void raise_maxima(OnlineSoftmax<kRowTiles>& state,
                                             const float (&score)[kRowTiles][kColumnTiles][4],
                                             float scale,
                                             float (&output)[kRowTiles][kHeadTiles][4]) {
  float top[kRowTiles][2];
  bool grew = false;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float highest = score[i][0][2 * h];
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        highest = fmaxf(highest, fmaxf(score[i][j][2 * h], score[i][j][2 * h + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffU, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffU, highest, 2));
      top[i][h] = fmaxf(state.top[i][h], highest * scale);
      grew |= top[i][h] > state.top[i][h] + kMaxLag;
    }
  }
  if (!__any_sync(0xffffffffU, grew)) return;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float factor =
          exp2_approximate(state.top[i][h] - (top[i][h] == -INFINITY ? 0.0F : top[i][h]));
      state.top[i][h] = top[i][h];
      state.sum[i][h] *= factor;
#pragma unroll
      for (int d = 0; d < kHeadTiles; ++d) {
        output[i][d][2 * h] *= factor;
        output[i][d][2 * h + 1] *= factor;
      }
    }
  }
}

/// Scores become probabilities relative to state.top, 2^(score·scale - top), and are added to its sum.
template <int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void exponentiate(OnlineSoftmax<kRowTiles>& state,
                                             float (&score)[kRowTiles][kColumnTiles][4],
                                             float scale) {
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // A row without visible keys so far: any finite offset gives probabilities of 0.
      const float offset = state.top[i][h] == -INFINITY ? 0.0F : state.top[i][h];
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& s = score[i][j][2 * h + c];
          s = exp2_approximate(fmaf(s, scale, -offset));
          state.sum[i][h] += s;
        }
      }
    }
  }
}

/// What the sums of each row are multiplied by in the end. Writes the rows' log-sum-exp where it is
/// wanted; `row0` is the warp's first query of that batch.
template <int kRowTiles>
__device__ __forceinline__ void finish_softmax(const AttentionParams& params,
                                               const OnlineSoftmax<kRowTiles>& state,
                                               std::int64_t batch, std::int64_t row0, int lane,
                                               float (&factor)[kRowTiles][2]) {
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = state.sum[i][h];
      sum += __shfl_xor_sync(0xffffffffU, sum, 1);
      sum += __shfl_xor_sync(0xffffffffU, sum, 2);
      factor[i][h] = row_factor(params, sum);
      const std::int64_t query = row0 + 16 * i + 8 * h + (lane >> 2);
      if (params.lse != nullptr && (lane & 3) == 0 && query < params.length) {
        static_cast<float*>(params.lse)[batch * params.length + query] =
            (state.top[i][h] + log2f(sum)) * static_cast<float>(kLn2);
      }
    }
  }
}

}  // namespace tenon::cuda
