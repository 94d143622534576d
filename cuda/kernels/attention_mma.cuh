// Tiles of attention on tensor cores (mma.sync), shared by the forward kernel and the gradient's.
//
// Tiles of kHead columns lie in shared memory row by row, 16-byte chunks swizzled. A block of kThreads
// threads copies them; each warp multiplies its own kRowTiles x 16 rows with all rows of a tile:
//   scores = rows · columnsᵀ   (kColumnTiles x 8 columns), C fragments in registers, which are,
//   sums  += weights · values   rounded, the A fragments of the next product: no trip to memory.
// A Tile gives T, kHead, kThreads, kRowTiles and kColumnTiles.
#pragma once

#include "cuda/device/mma.cuh"
#include "cuda/kernels/attention_common.cuh"

namespace tenon::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffU;

template <class Tile>
inline constexpr int kRowBytes = Tile::kHead * 2;
/// 16-byte chunks of a row; C fragments of a sum along the head.
template <class Tile>
inline constexpr int kHeadTiles = Tile::kHead / 8;
/// Products along the head.
template <class Tile>
inline constexpr int kHeadSteps = Tile::kHead / 16;

/// C fragments of a warp's scores, and of its sums along the head.
template <class Tile>
using Scores = float[Tile::kRowTiles][Tile::kColumnTiles][4];
template <class Tile>
using Sums = float[Tile::kRowTiles][kHeadTiles<Tile>][4];
/// Scores rounded to A fragments: [i][j][h] is rows 8·h + g of row tile i, column tile j.
template <class Tile>
using Weights = std::uint32_t[Tile::kRowTiles][Tile::kColumnTiles][2];
/// A fragments of a warp's rows for one step along the head.
template <class Tile>
using RowFragments = std::uint32_t[Tile::kRowTiles][4];

/// Byte offset of a 16-byte chunk in a tile. The exclusive or spreads 8 rows of one chunk over all
/// banks: ldmatrix reads without conflicts.
template <class Tile>
__device__ __forceinline__ int chunk_offset(int row, int chunk) {
  return row * kRowBytes<Tile> + ((chunk ^ (row & 7)) << 4);
}

/// Starts copying kTileRows rows of `global`; rows from `rows` on and chunks from `chunks` on are 0.
template <class Tile, int kTileRows>
__device__ __forceinline__ void copy_tile(std::uint32_t shared, const typename Tile::T* global,
                                          std::int64_t stride, std::int64_t rows, int chunks) {
  constexpr int kChunks = kHeadTiles<Tile>;
  constexpr int kStep = Tile::kThreads / kChunks;
  static_assert(kTileRows % kStep == 0);
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int first = static_cast<int>(threadIdx.x) / kChunks;
  const auto* source = global + first * stride + chunk * 8;
#pragma unroll
  for (int i = 0; i < kTileRows / kStep; ++i) {
    const int row = first + i * kStep;
    copy_async16(shared + chunk_offset<Tile>(row, chunk), source, row < rows && chunk < chunks);
    source += kStep * stride;
  }
}

/// A fragments of the warp's rows, the first of which is `warp_row`, for columns 16·step… of the head.
template <class Tile>
__device__ __forceinline__ void load_rows(RowFragments<Tile>& rows, std::uint32_t shared,
                                          int warp_row, int lane, int step) {
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
    const int row = warp_row + 16 * i + (lane & 15);
    load_matrices(rows[i], (shared + chunk_offset<Tile>(row, lane >> 4)) ^ (step << 5));
  }
}

/// scores += rows·columnsᵀ for one 16-column step of the head.
template <class Tile>
__device__ __forceinline__ void add_row_products(Scores<Tile>& scores,
                                                 const RowFragments<Tile>& rows,
                                                 std::uint32_t columns, int lane, int step) {
  const int row = ((lane >> 4) << 3) + (lane & 7);
  // The tile's base is aligned to rows, so a step is an exclusive or of the swizzled address.
  const std::uint32_t base = (columns + chunk_offset<Tile>(row, (lane >> 3) & 1)) ^ (step << 5);
#pragma unroll
  for (int j = 0; j < Tile::kColumnTiles / 2; ++j) {
    std::uint32_t column[4];
    load_matrices(column, base + j * 16 * kRowBytes<Tile>);
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
      mma_m16n8k16<typename Tile::T>(scores[i][2 * j], rows[i], column[0], column[1]);
      mma_m16n8k16<typename Tile::T>(scores[i][2 * j + 1], rows[i], column[2], column[3]);
    }
  }
}

/// sums += weights·values.
template <class Tile>
__device__ __forceinline__ void add_weighted_rows(Sums<Tile>& sums, const Weights<Tile>& weights,
                                                  std::uint32_t values, int lane) {
#pragma unroll
  for (int step = 0; step < Tile::kColumnTiles / 2; ++step) {
    const std::uint32_t base = values + chunk_offset<Tile>(16 * step + (lane & 15), lane >> 4);
#pragma unroll
    for (int d = 0; d < kHeadTiles<Tile> / 2; ++d) {
      std::uint32_t value[4];
      load_matrices_transposed(value, base ^ (d << 5));
#pragma unroll
      for (int i = 0; i < Tile::kRowTiles; ++i) {
        const std::uint32_t a[4] = {weights[i][2 * step][0], weights[i][2 * step][1],
                                    weights[i][2 * step + 1][0], weights[i][2 * step + 1][1]};
        mma_m16n8k16<typename Tile::T>(sums[i][2 * d], a, value[0], value[1]);
        mma_m16n8k16<typename Tile::T>(sums[i][2 * d + 1], a, value[2], value[3]);
      }
    }
  }
}

/// Rows of a matrix in device memory that a warp writes.
template <class T>
struct TargetRows {
  T* data;  // the warp's first row
  std::int64_t row_stride;
  std::int64_t column_stride;
  std::int64_t rows;  // that exist, counted from `data`
  int columns;        // a multiple of 8
};

/// Rounds the warp's sums times `factor` (of rows 16·i + 8·h + g) and writes them as 16-byte chunks
/// through the 16·kRowTiles rows of shared memory from `warp_row` on, which only this warp uses.
template <class Tile>
__device__ __forceinline__ void write_rows(const TargetRows<typename Tile::T>& target,
                                           const Sums<Tile>& sums,
                                           const float (&factor)[Tile::kRowTiles][2],
                                           unsigned char* shared, int warp_row, int lane) {
  using T = typename Tile::T;
  __syncwarp();  // the warp's last reads of these rows are over
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp_row + 16 * i + 8 * h + (lane >> 2);
#pragma unroll
      for (int d = 0; d < kHeadTiles<Tile>; ++d) {
        *reinterpret_cast<std::uint32_t*>(shared + chunk_offset<Tile>(row, d) + 4 * (lane & 3)) =
            pack_floats<T>(sums[i][d][2 * h] * factor[i][h], sums[i][d][2 * h + 1] * factor[i][h]);
      }
    }
  }
  __syncwarp();
  constexpr int kChunks = kHeadTiles<Tile>;
  const int chunks = target.columns / 8;
  const bool whole_chunks = target.column_stride == 1 && target.row_stride % 8 == 0 &&
                            reinterpret_cast<std::uintptr_t>(target.data) % 16 == 0;
  for (int index = lane; index < 16 * Tile::kRowTiles * kChunks; index += 32) {
    const int row = index / kChunks, chunk = index % kChunks;
    if (chunk >= chunks || row >= target.rows) continue;
    const unsigned char* source = shared + chunk_offset<Tile>(warp_row + row, chunk);
    T* data = target.data + row * target.row_stride + chunk * 8 * target.column_stride;
    if (whole_chunks) {
      *reinterpret_cast<uint4*>(data) = *reinterpret_cast<const uint4*>(source);
    } else {
      for (int c = 0; c < 8; ++c) {
        data[c * target.column_stride] = reinterpret_cast<const T*>(source)[c];
      }
    }
  }
}

}  // namespace tenon::cuda
