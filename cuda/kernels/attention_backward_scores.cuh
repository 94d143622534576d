// Scores of the gradient's tensor core kernels become probabilities, and these dS; see
// attention_backward_mma.cuh. A Tile gives, beside what attention_mma.cuh wants, kDrops, kWarpRows
// and kRows, the rows that a block owns.
#pragma once

#include "cuda/kernels/attention_backward_mma.cuh"

namespace tenon::cuda {

/// A value of each row that a lane has a part of: [i][h] is the warp's row 16·i + 8·h + g.
template <class Tile>
using RowValues = float[Tile::kRowTiles][2];

/// The mask of one batch: what it adds to the scores of each key, or where `keys` is null its first
/// element. A Tile without kMasks has none, one with kKeyMasks no other than the first.
struct BatchMask {
  const float* keys = nullptr;
  const char* full = nullptr;
  int plain_first = 0, plain_end = 0;  // keys on which it changes nothing

  __device__ __forceinline__ bool changes(std::int64_t key0, int count) const {
    return key0 < plain_first || key0 + count > plain_end;
  }
};

template <class Tile>
__device__ __forceinline__ BatchMask mask_of_batch(const AttentionBackwardParams& params,
                                                   std::int64_t batch) {
  BatchMask mask;
  if constexpr (!Tile::kMasks) return mask;
  if (Tile::kKeyMasks || params.key_bias != nullptr) {
    const LiveKeys live = live_keys(params, batch);
    mask.keys = params.key_bias + batch * params.key_bias_stride;
    mask.plain_first = static_cast<int>(live.first);
    mask.plain_end = static_cast<int>(live.plain_end);
    return mask;
  }
  const std::int64_t element = params.mask_kind == AttentionMask::additive
                                   ? static_cast<std::int64_t>(sizeof(typename Tile::T))
                                   : 1;
  mask.full = static_cast<const char*>(params.mask) +
              batch_offset(params, params.mask_strides, batch) * element;
  return mask;
}

/// What a full mask adds to a score; -inf where there is none.
template <class T>
__device__ __forceinline__ float full_mask(const AttentionBackwardParams& params, const char* mask,
                                           std::int64_t query, std::int64_t key) {
  if (query >= params.length || key >= params.keys) return -INFINITY;
  return apply_mask<T>(params, mask, query, key, 0.0F);
}

/// Scores to what they are powers of two of: score·scale - lse, and what the mask adds.
template <class Tile>
__device__ __forceinline__ void mask_query_scores(const AttentionBackwardParams& params,
                                                  float scale, const RowValues<Tile>& lse,
                                                  Scores<Tile>& score, const BatchMask& mask,
                                                  std::int64_t row0, std::int64_t key0, int lane) {
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const int column = 8 * j + 2 * (lane & 3);
    float2 bias = make_float2(0, 0);
    if (mask.keys != nullptr) {
      bias = __ldg(reinterpret_cast<const float2*>(mask.keys + key0 + column));
    }
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float offset = (e % 2 == 0 ? bias.x : bias.y) - lse[i][e / 2];
        if (!Tile::kKeyMasks && mask.keys == nullptr) {
          offset += full_mask<typename Tile::T>(params, mask.full,
                                                row0 + 16 * i + 8 * (e / 2) + (lane >> 2),
                                                key0 + column + e % 2);
        }
        score[i][j][e] = fmaf(score[i][j][e], scale, offset);
      }
    }
  }
}

/// The warp's scores with the 8·kColumnTiles keys from `key0` on to probabilities over 1-p. `edge`:
/// not all of the keys may exist and be seen.
template <class Tile>
__device__ __forceinline__ void finish_query_probabilities(
    const AttentionBackwardParams& params, float scale, const RowValues<Tile>& lse,
    Scores<Tile>& score, const BatchMask& mask, std::int64_t row0, std::int64_t key0, int lane,
    bool edge) {
  constexpr int kKeys = 8 * Tile::kColumnTiles;
  const bool masks = Tile::kMasks && mask.changes(key0, kKeys);
  if (masks) mask_query_scores<Tile>(params, scale, lse, score, mask, row0, key0, lane);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = score[i][j][e];
        if (!masks) s = fmaf(s, scale, -lse[i][e / 2]);
        s = exp2_approximate(s);
      }
    }
  }
  if (!edge) return;
  const auto present = static_cast<int>(min(params.keys - key0, std::int64_t{kKeys}));
  if (present == kKeys && !(params.is_causal && key0 + kKeys - 1 > row0)) {
    return;
  }
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int seen = seen_keys(params, row0 + 16 * i + 8 * h + (lane >> 2), key0, present);
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (8 * j + 2 * (lane & 3) + c >= seen) score[i][j][2 * h + c] = 0;
        }
      }
    }
  }
}

/// dS, rounded, of the same tile.
template <class Tile>
__device__ __forceinline__ void finish_query_weights(const RowValues<Tile>& delta,
                                                     const Scores<Tile>& probability,
                                                     const Scores<Tile>& d_weight,
                                                     const unsigned char* bits, int lane,
                                                     Weights<Tile>& weights) {
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * i + 8 * h + (lane >> 2);
      std::uint32_t keep[Tile::kColumnTiles / 4] = {};
      if constexpr (Tile::kDrops) {
#pragma unroll
        for (int word = 0; word < Tile::kColumnTiles / 4; ++word) {
          keep[word] =
              reinterpret_cast<const std::uint32_t*>(bits + row * (kStageRows / 8))[word] >>
              (2 * (lane & 3));
        }
      }
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
        float d_score[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float p = probability[i][j][2 * h + c];
          const bool kept = !Tile::kDrops || ((keep[j / 4] >> (8 * (j % 4) + c)) & 1U) != 0;
          d_score[c] = fmaf(kept ? p : 0.0F, d_weight[i][j][2 * h + c], -p * delta[i][h]);
        }
        weights[i][j][h] = pack_floats<typename Tile::T>(d_score[0], d_score[1]);
      }
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

/// As mask_query_scores; `lse` is that of the tile's queries.
template <class Tile>
__device__ __forceinline__ void mask_key_scores(const AttentionBackwardParams& params, float scale,
                                                Scores<Tile>& score, const float* lse,
                                                const BatchMask& mask, std::int64_t row0,
                                                std::int64_t query0, int lane) {
  RowValues<Tile> bias = {};  // of own keys
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t key = row0 + 16 * i + 8 * h + (lane >> 2);
      if (mask.keys != nullptr) {
        bias[i][h] = key < params.key_bias_stride ? __ldg(mask.keys + key) : -INFINITY;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 offset = *reinterpret_cast<const float2*>(lse + 8 * j + 2 * (lane & 3));
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float added = bias[i][e / 2] - (e % 2 == 0 ? offset.x : offset.y);
        if (!Tile::kKeyMasks && mask.keys == nullptr) {
          added += full_mask<typename Tile::T>(params, mask.full,
                                               query0 + 8 * j + 2 * (lane & 3) + e % 2,
                                               row0 + 16 * i + 8 * (e / 2) + (lane >> 2));
        }
        score[i][j][e] = fmaf(score[i][j][e], scale, added);
      }
    }
  }
}

/// Scores of the warp's keys (rows) and 8·kColumnTiles queries to probabilities over 1-p, with a minus sign
/// where dropout drops them. `edge`: a query may come before a key.
template <class Tile>
__device__ __forceinline__ void finish_key_probabilities(const AttentionBackwardParams& params,
                                                         float scale, Scores<Tile>& score,
                                                         const float* lse,
                                                         const unsigned char* bits,
                                                         const BatchMask& mask, std::int64_t row0,
                                                         std::int64_t query0, int lane, bool edge) {
  const bool masks = Tile::kMasks && mask.changes(row0, Tile::kWarpRows);
  if (masks) mask_key_scores<Tile>(params, scale, score, lse, mask, row0, query0, lane);
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 offset = *reinterpret_cast<const float2*>(lse + 8 * j + 2 * (lane & 3));
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = score[i][j][e];
        if (!masks) s = fmaf(s, scale, e % 2 == 0 ? -offset.x : -offset.y);
        s = exp2_approximate(s);
      }
    }
  }
  if (edge && query0 < row0 + Tile::kWarpRows - 1) {
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
}

/// What dropout keeps of such probabilities, rounded.
template <class Tile>
__device__ __forceinline__ void pack_kept(const Scores<Tile>& score, Weights<Tile>& weights) {
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

/// dS of one pair, of whose probability the sign is dropout's decision.
template <class Tile>
__device__ __forceinline__ float key_weight(float probability, float d_weight, float delta) {
  return fmaf(kept<Tile>(probability), d_weight, -fabsf(probability) * delta);
}

/// dS of the same tile, in place of dO·Vᵀ.
template <class Tile>
__device__ __forceinline__ void replace_key_weights(const Scores<Tile>& probability,
                                                    Scores<Tile>& d_weight, const float* delta,
                                                    int lane) {
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles; ++j) {
    const float2 offset = *reinterpret_cast<const float2*>(delta + 8 * j + 2 * (lane & 3));
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& weight = d_weight[i][j][e];
        weight = key_weight<Tile>(probability[i][j][e], weight, e % 2 == 0 ? offset.x : offset.y);
      }
    }
  }
}

/// Scores, rounded.
template <class Tile>
__device__ __forceinline__ void pack_scores(const Scores<Tile>& score, Weights<Tile>& weights) {
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        weights[i][j][h] =
            pack_floats<typename Tile::T>(score[i][j][2 * h], score[i][j][2 * h + 1]);
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
          d_score[c] = key_weight<Tile>(probability[i][j][2 * h + c], d_weight[i][j][2 * h + c],
                                        c == 0 ? offset.x : offset.y);
        }
        weights[i][j][h] = pack_floats<typename Tile::T>(d_score[0], d_score[1]);
      }
    }
  }
}

}  // namespace tenon::cuda
