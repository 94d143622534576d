// Products of tiles in shared memory by ordinary multiply-adds, shared by attention's kernels.
//
// A block has 128 threads; thread (y, x) = (tid / 16, tid % 16) holds rows y + 8·i and columns
// x + 16·j of a tile of kSimtRows rows. All shared memory reads are 16 bytes a thread: rows of both
// operands are read along the depth, rows padded by 16 bytes so that neighbouring rows start in
// different banks. A Tile gives
//   C               what it is computed in
//   kLength         elements of a 16-byte read
//   kHeadStride     stride of staged rows
//   kThreadColumns  columns of a product that one thread holds
//   kWeightStride   stride of the weights of add_weighted_rows
//   kSlice          columns of its rows; kColumnSets: 16-byte pieces of such a row that a thread holds
#pragma once

#include "cuda/device/memory.cuh"
#include "cuda/kernels/attention_common.cuh"

namespace tenon::cuda {

inline constexpr int kSimtThreads = 128;
inline constexpr int kSimtRows = 64;
inline constexpr int kThreadRows = 8;
inline constexpr int kAcross = 16;  // threads along the columns
inline constexpr unsigned kFullWarp = 0xffffffffU;

/// Copies kRows x kColumns elements, widened; what lies outside rows x columns is 0.
template <int kRows, int kColumns, int kStride, class C, class T>
__device__ __forceinline__ void stage_tile(C* shared, const T* global, std::int64_t stride,
                                           std::int64_t rows, std::int64_t columns) {
  constexpr int kStep = kSimtThreads / kColumns;
  static_assert(kSimtThreads % kColumns == 0 && kRows % kStep == 0);
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int first = static_cast<int>(threadIdx.x) / kColumns;
  const T* source = global + first * stride + column;
#pragma unroll 8
  for (int i = 0; i < kRows / kStep; ++i) {
    const int row = first + i * kStep;
    shared[row * kStride + column] =
        row < rows && column < columns ? static_cast<C>(widen(*source)) : C(0);
    source += kStep * stride;
  }
}

/// sum += rows·columnsᵀ over the first `depth` staged columns of both.
template <class Tile>
__device__ __forceinline__ void add_row_products(
    const typename Tile::C* rows, const typename Tile::C* columns,
    typename Tile::C (&sum)[kThreadRows][Tile::kThreadColumns], int depth, int y, int x) {
  using C = typename Tile::C;
#pragma unroll 2
  for (int k = 0; k < depth; k += Tile::kLength) {
    Pack<C, Tile::kLength> row[kThreadRows];
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      row[i] = load_pack<C, Tile::kLength>(&rows[(y + 8 * i) * Tile::kHeadStride + k]);
    }
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) {
      const auto column =
          load_pack<C, Tile::kLength>(&columns[(x + kAcross * j) * Tile::kHeadStride + k]);
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
        for (int e = 0; e < Tile::kLength; ++e) sum[i][j] += row[i].item[e] * column.item[e];
      }
    }
  }
}

/// sum += weights·values over the first `count` rows of values, which are kSlice long.
template <class Tile>
__device__ __forceinline__ void add_weighted_rows(
    const typename Tile::C* weights, const typename Tile::C* values,
    typename Tile::C (&sum)[kThreadRows][Tile::kColumnSets][Tile::kLength], int count, int y,
    int x) {
  using C = typename Tile::C;
#pragma unroll 1
  for (int k = 0; k < count; k += Tile::kLength) {
    Pack<C, Tile::kLength> p[kThreadRows];
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      p[i] = load_pack<C, Tile::kLength>(&weights[(y + 8 * i) * Tile::kWeightStride + k]);
    }
#pragma unroll
    for (int e = 0; e < Tile::kLength; ++e) {
#pragma unroll
      for (int set = 0; set < Tile::kColumnSets; ++set) {
        const auto value = load_pack<C, Tile::kLength>(
            &values[(k + e) * Tile::kSlice + (set * kAcross + x) * Tile::kLength]);
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
          for (int c = 0; c < Tile::kLength; ++c) {
            sum[i][set][c] += p[i].item[e] * value.item[c];
          }
        }
      }
    }
  }
}

/// Reduces over the 16 threads that share rows.
template <class C, class Combine>
__device__ __forceinline__ C reduce_across(C value, Combine combine) {
#pragma unroll
  for (int distance = kAcross / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(kFullWarp, value, distance));
  }
  return value;
}

}  // namespace tenon::cuda
