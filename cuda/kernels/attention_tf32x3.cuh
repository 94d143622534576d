// Tiles of float32 attention on tensor cores (cuda/device/tf32x3.cuh), shared by the forward kernel and
// the gradient's.
//
// Tiles of kHead columns lie in shared memory row by row, rows padded by 16 bytes so that neither
// access has conflicts. A block of kThreads threads copies them; each warp multiplies its own
// kRowTiles x 16 rows with all rows of a tile:
//   scores = rows · columnsᵀ   (kColumnTiles x 8 columns), C fragments in registers, which are
//   sums  += weights · values   the A fragments of the next product when its values are read in this
// order: column t of A is row 2t of eight values, and column t + 4 is row 2t + 1.
// A Tile gives kHead, kThreads, kRowTiles and kColumnTiles.
#pragma once

#include "cuda/device/mma.cuh"
#include "cuda/device/tf32x3.cuh"
#include "cuda/kernels/attention_common.cuh"

namespace tenon::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffU;

/// Floats from one row in shared memory to the next.
template <class Tile>
inline constexpr int kRowStride = Tile::kHead + 4;
/// Products along the head; C fragments of a sum along it.
template <class Tile>
inline constexpr int kHeadTiles = Tile::kHead / 8;

/// C fragments of a warp's scores, and of its sums along the head. Column n of the fragments 2d and
/// 2d + 1 of a sum is column 16·d + 2n, and the one after it, of the head.
template <class Tile>
using Scores = float[Tile::kRowTiles][Tile::kColumnTiles][4];
template <class Tile>
using Sums = float[Tile::kRowTiles][kHeadTiles<Tile>][4];

template <class Tile>
__host__ __device__ constexpr int tile_bytes(int rows) {
  return rows * kRowStride<Tile> * static_cast<int>(sizeof(float));
}

/// Starts copying kTileRows rows of `global`; rows from `rows` and columns from `columns` on are 0.
template <class Tile, int kTileRows>
__device__ __forceinline__ void copy_tile(std::uint32_t shared, const float* global,
                                          std::int64_t stride, std::int64_t rows,
                                          std::int64_t columns) {
  constexpr int kChunks = Tile::kHead / 4;
  constexpr int kStep = Tile::kThreads / kChunks;
  static_assert(kTileRows % kStep == 0);
  const int column = static_cast<int>(threadIdx.x) % kChunks * 4;
  const int first = static_cast<int>(threadIdx.x) / kChunks;
  const float* source = global + first * stride + column;
#pragma unroll
  for (int i = 0; i < kTileRows / kStep; ++i) {
    const int row = first + i * kStep;
    copy_async16(shared + tile_bytes<Tile>(row) + column * 4, source,
                 row < rows && column < columns);
    source += kStep * stride;
  }
}

/// The compiler moves no loads to before this: what they fill would not fit the registers there.
__device__ __forceinline__ void hold_back_loads() { __syncwarp(); }

/// scores = the warp's rows · columnsᵀ; `rows` and `columns` are addresses of tiles in shared memory.
template <class Tile>
__device__ __forceinline__ void multiply_rows(Scores<Tile>& scores, std::uint32_t rows,
                                              std::uint32_t columns, int lane) {
  hold_back_loads();
  SplitC sum[Tile::kRowTiles][Tile::kColumnTiles] = {};
  const std::uint32_t row = rows + tile_bytes<Tile>(lane & 15) + ((lane >> 4) << 4);
  const std::uint32_t column =
      columns + tile_bytes<Tile>(((lane >> 4) << 3) + (lane & 7)) + (((lane >> 3) & 1) << 4);
#pragma unroll
  for (int step = 0; step < kHeadTiles<Tile>; ++step) {
    SplitA a[Tile::kRowTiles];
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
      std::uint32_t x[4];
      load_matrices(x, row + tile_bytes<Tile>(16 * i) + 32 * step);
      a[i] = split_a(__uint_as_float(x[0]), __uint_as_float(x[1]), __uint_as_float(x[2]),
                     __uint_as_float(x[3]));
    }
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; j += 2) {
      std::uint32_t x[4];
      load_matrices(x, column + tile_bytes<Tile>(8 * j) + 32 * step);
      const SplitB first = split_b(__uint_as_float(x[0]), __uint_as_float(x[1]));
      const SplitB second = split_b(__uint_as_float(x[2]), __uint_as_float(x[3]));
#pragma unroll
      for (int i = 0; i < Tile::kRowTiles; ++i) {
        sum[i][j].add_product(a[i], first);
        sum[i][j + 1].add_product(a[i], second);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) scores[i][j][c] = sum[i][j].total(c);
    }
  }
}

/// sums += weights·values; `values` is a tile in shared memory of 8·kColumnTiles rows.
template <class Tile>
__device__ __forceinline__ void add_weighted_rows(Sums<Tile>& sums, const Scores<Tile>& weights,
                                                  const float* values, int lane) {
  hold_back_loads();
  SplitA a[Tile::kRowTiles][Tile::kColumnTiles];
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int k = 0; k < Tile::kColumnTiles; ++k) {
      const auto& w = weights[i][k];
      a[i][k] = split_a(w[0], w[2], w[1], w[3]);
    }
  }
  const float* value = values + 2 * (lane & 3) * kRowStride<Tile> + 2 * (lane >> 2);
#pragma unroll
  for (int d = 0; d < kHeadTiles<Tile>; d += 2) {
    SplitC sum[Tile::kRowTiles][2] = {};
#pragma unroll
    for (int k = 0; k < Tile::kColumnTiles; ++k) {
      const float* row = value + 8 * k * kRowStride<Tile> + 8 * d;
      const float2 even = *reinterpret_cast<const float2*>(row);
      const float2 odd = *reinterpret_cast<const float2*>(row + kRowStride<Tile>);
      const SplitB first = split_b(even.x, odd.x), second = split_b(even.y, odd.y);
#pragma unroll
      for (int i = 0; i < Tile::kRowTiles; ++i) {
        sum[i][0].add_product(a[i][k], first);
        sum[i][1].add_product(a[i][k], second);
      }
    }
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[i][d + n][c] += sum[i][n].total(c);
      }
    }
  }
}

/// The mask of one batch: what it adds to the scores of each key or, where `keys` is null, to each score:
/// as `pairs` to copy, or its first element.
struct Tf32Mask {
  const float* keys = nullptr;
  const float* pairs = nullptr;
  const char* first = nullptr;
};

__device__ __forceinline__ Tf32Mask find_mask(const AttentionParams& params, std::int64_t batch) {
  Tf32Mask mask;
  if (params.key_bias != nullptr) {
    mask.keys = params.key_bias + batch * params.key_bias_stride;
  } else if (params.pair_bias != nullptr) {
    mask.pairs = params.pair_bias + batch_offset(params, params.pair_strides, batch);
  } else if (params.mask_kind != AttentionMask::none) {
    const std::int64_t element = params.mask_kind == AttentionMask::additive ? 4 : 1;
    mask.first = static_cast<const char*>(params.mask) +
                 batch_offset(params, params.mask_strides, batch) * element;
  }
  return mask;
}

/// Floats from one row of a warp's part of `pairs` in shared memory to the next: of kColumns and 4 more, so
/// that its accesses have no conflicts.
template <int kColumns>
inline constexpr int kPairStride = kColumns + 4;

/// Starts copying kRows queries' masks of kColumns keys to the warp's part; 0 where there is none.
template <int kRows, int kColumns>
__device__ __forceinline__ void copy_pairs(const AttentionParams& params, std::uint32_t shared,
                                           const float* pairs, std::int64_t query0,
                                           std::int64_t key0, int lane) {
  constexpr int kChunks = kColumns / 4;
  const int row = lane / kChunks, column = lane % kChunks * 4;
  const float* source = pairs + (query0 + row) * params.pair_strides.row + key0 + column;
#pragma unroll
  for (int i = 0; i < kRows; i += 32 / kChunks) {
    copy_async16(shared + ((row + i) * kPairStride<kColumns> + column) * 4,
                 source + i * params.pair_strides.row,
                 query0 + row + i < params.length && key0 + column < params.keys);
  }
}

/// What a mask that is not copied adds; -inf where there is no score.
__device__ __forceinline__ float read_mask(const AttentionParams& params, const char* first,
                                           std::int64_t query, std::int64_t key) {
  if (query >= params.length || key >= params.keys) return -INFINITY;
  return apply_mask<float>(params, first, query, key, 0.0F);
}

/// The warp's scores times scale, plus what load(row, column) gives for two neighbouring columns. What
/// bools hide is hidden whatever its score is.
template <class Tile, class Load>
__device__ __forceinline__ void add_mask(const AttentionParams& params, Scores<Tile>& score,
                                         int lane, const Load& load) {
  const auto scale = static_cast<float>(params.scale_log2);
  const bool is_bool = params.mask_kind == AttentionMask::boolean;
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
        const float2 added = load(16 * i + 8 * h + (lane >> 2), 8 * j + 2 * (lane & 3));
        float &a = score[i][j][2 * h], &b = score[i][j][2 * h + 1];
        a = is_bool && added.x == -INFINITY ? -INFINITY : fmaf(a, scale, added.x);
        b = is_bool && added.y == -INFINITY ? -INFINITY : fmaf(b, scale, added.y);
      }
    }
  }
}

/// The same for scores of the warp's queries, from row0 on, and the keys of a step. `shared` has the warp's
/// part of `pairs`.
template <class Tile>
__device__ __forceinline__ void mask_query_scores(const AttentionParams& params,
                                                  const Tf32Mask& mask, Scores<Tile>& score,
                                                  const float* shared, std::int64_t row0,
                                                  std::int64_t key0, int lane) {
  if (mask.keys != nullptr) {
    add_mask<Tile>(params, score, lane, [&](int, int column) {
      return __ldg(reinterpret_cast<const float2*>(mask.keys + key0 + column));
    });
  } else if (mask.pairs != nullptr) {
    add_mask<Tile>(params, score, lane, [&](int row, int column) {
      const float2 pair = *reinterpret_cast<const float2*>(
          shared + row * kPairStride<8 * Tile::kColumnTiles> + column);
      return make_float2(mask_in_log2(pair.x), mask_in_log2(pair.y));
    });
  } else {
    add_mask<Tile>(params, score, lane, [&](int row, int column) {
      return make_float2(read_mask(params, mask.first, row0 + row, key0 + column),
                         read_mask(params, mask.first, row0 + row, key0 + column + 1));
    });
  }
}

/// Rows of a matrix in device memory that a warp writes.
struct TargetRows {
  float* data;  // the warp's first row
  std::int64_t row_stride;
  std::int64_t column_stride;
  std::int64_t rows;     // that exist, counted from `data`
  std::int64_t columns;  // a multiple of 4
};

/// Writes the warp's sums times `factor` (of rows 16·i + 8·h + g). A lane holds four neighbouring
/// columns of a row, a quad 64 bytes.
template <class Tile>
__device__ __forceinline__ void write_rows(const TargetRows& target, const Sums<Tile>& sums,
                                           const float (&factor)[Tile::kRowTiles][2], int lane) {
  const bool whole_chunks = target.column_stride == 1 && target.row_stride % 4 == 0 &&
                            reinterpret_cast<std::uintptr_t>(target.data) % 16 == 0;
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * i + 8 * h + (lane >> 2);
      if (row >= target.rows) continue;
      const float f = factor[i][h];
#pragma unroll
      for (int d = 0; d < kHeadTiles<Tile>; d += 2) {
        const int column = 8 * d + 4 * (lane & 3);
        if (column >= target.columns) continue;
        const auto &even = sums[i][d], &odd = sums[i][d + 1];
        const float4 chunk{even[2 * h] * f, odd[2 * h] * f, even[2 * h + 1] * f,
                           odd[2 * h + 1] * f};
        float* data = target.data + row * target.row_stride + column * target.column_stride;
        if (whole_chunks) {
          *reinterpret_cast<float4*>(data) = chunk;
        } else {
          data[0] = chunk.x;
          data[target.column_stride] = chunk.y;
          data[2 * target.column_stride] = chunk.z;
          data[3 * target.column_stride] = chunk.w;
        }
      }
    }
  }
}

}  // namespace tenon::cuda
