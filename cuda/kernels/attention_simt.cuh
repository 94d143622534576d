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
//
// A kernel is compiled for what it computes in, float or double; which floats lie in device memory
// is known at run time (Elements), and only loads and stores ask for it.
#pragma once

#include "cuda/device/memory.cuh"
#include "cuda/kernels/attention_common.cuh"

namespace tenon::cuda {

inline constexpr int kSimtThreads = 128;
inline constexpr int kSimtRows = 64;
inline constexpr int kThreadRows = 8;
inline constexpr int kAcross = 16;  // threads along the columns
inline constexpr unsigned kFullWarp = 0xffffffffU;

/// The elements of the operands in device memory, where addresses are in bytes: of type C or, if C
/// is float, of any smaller float too.
template <class C>
struct Elements {
  DType dtype;

  __device__ __forceinline__ int bytes() const {
    if constexpr (sizeof(C) == sizeof(double)) return sizeof(C);
    return dtype == DType::float32 ? 4 : 2;
  }

  /// Calls f with a function that loads an element; what depends on the dtype is decided once.
  template <class F>
  __device__ __forceinline__ void with_loader(const F& f) const {
    const auto load = [](const char* data) { return *reinterpret_cast<const C*>(data); };
    if (sizeof(C) == sizeof(double) || dtype == DType::float32) return f(load);
    const bool is_half = dtype == DType::float16;
    f([is_half](const char* data) {
      const auto bits = *reinterpret_cast<const std::uint16_t*>(data);
      return static_cast<C>(is_half ? widen(std::bit_cast<Half>(bits))
                                    : widen(std::bit_cast<BFloat16>(bits)));
    });
  }

  __device__ __forceinline__ void store(char* data, C value) const {
    if (sizeof(C) == sizeof(double) || dtype == DType::float32) {
      *reinterpret_cast<C*>(data) = value;
    } else if (dtype == DType::float16) {
      *reinterpret_cast<Half*>(data) = convert<Half>(value);
    } else {
      *reinterpret_cast<BFloat16*>(data) = convert<BFloat16>(value);
    }
  }
};

/// Copies kRows x kColumns elements, widened; what lies outside rows x columns is 0.
template <int kRows, int kColumns, int kStride, class C>
__device__ __forceinline__ void stage_tile(C* shared, const Elements<C>& elements,
                                           const char* global, std::int64_t stride,
                                           std::int64_t rows, std::int64_t columns) {
  constexpr int kStep = kSimtThreads / kColumns;
  static_assert(kSimtThreads % kColumns == 0 && kRows % kStep == 0);
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int first = static_cast<int>(threadIdx.x) / kColumns;
  const std::int64_t row_bytes = stride * elements.bytes();
  const char* source = global + first * row_bytes + column * elements.bytes();
  elements.with_loader([&](const auto& load) {
#pragma unroll 8
    for (int i = 0; i < kRows / kStep; ++i) {
      const int row = first + i * kStep;
      shared[row * kStride + column] = row < rows && column < columns ? load(source) : C(0);
      source += kStep * row_bytes;
    }
  });
}

/// Copies the mask of kSimtRows x kColumns scores: what is added to them, or whether (not 0) they
/// are seen. `mask` is that of the first one; what lies outside rows x columns is 0.
template <int kColumns, int kStride, class C>
__device__ __forceinline__ void stage_mask(C* shared, const Elements<C>& elements,
                                           AttentionMask kind, const char* mask,
                                           std::int64_t row_stride, std::int64_t column_stride,
                                           std::int64_t rows, std::int64_t columns) {
  const auto copy = [&](std::int64_t width, const auto& load) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kSimtRows * kColumns; i += kSimtThreads) {
      const int row = i / kColumns, column = i % kColumns;
      const std::int64_t index = row * row_stride + column * column_stride;
      const bool exists = row < rows && column < columns;
      shared[row * kStride + column] = exists ? load(mask + index * width) : C(0);
    }
  };
  if (kind == AttentionMask::boolean) {
    copy(1, [](const char* data) { return *data != 0 ? C(1) : C(0); });
  } else {
    elements.with_loader([&](const auto& load) { copy(elements.bytes(), load); });
  }
}

/// Applies a mask that stage_mask has copied, if any, to scores in units of log2.
template <class Tile>
__device__ __forceinline__ void add_mask(
    AttentionMask kind, const typename Tile::C* mask,
    typename Tile::C (&score)[kThreadRows][Tile::kThreadColumns], int y, int x) {
  using C = typename Tile::C;
  if (kind == AttentionMask::none) return;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) {
      const C m = mask[(y + 8 * i) * Tile::kWeightStride + x + kAcross * j];
      const C sum = fma(m, static_cast<C>(1.4426950408889634074), score[i][j]);
      const C seen = m != C(0) ? score[i][j] : -static_cast<C>(INFINITY);
      score[i][j] = kind == AttentionMask::boolean ? seen : sum;
    }
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

/// Where results go: a tile of kSimtRows rows and kSlice columns of a matrix, of which `rows` and
/// `columns` exist; strides are in elements.
struct TargetTile {
  char* data;
  std::int64_t row_stride, column_stride;
  std::int64_t rows, columns;
};

/// Writes what the block's threads hold, by way of a tile in shared memory that nobody reads now.
template <class Tile>
__device__ __forceinline__ void store_tile(
    const TargetTile& target, const Elements<typename Tile::C>& elements,
    const typename Tile::C (&result)[kThreadRows][Tile::kColumnSets][Tile::kLength],
    typename Tile::C* shared, int y, int x) {
  using C = typename Tile::C;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int set = 0; set < Tile::kColumnSets; ++set) {
      Pack<C, Tile::kLength> piece;
#pragma unroll
      for (int c = 0; c < Tile::kLength; ++c) piece.item[c] = result[i][set][c];
      store_pack(&shared[(y + 8 * i) * Tile::kSlice + (set * kAcross + x) * Tile::kLength], piece);
    }
  }
  __syncthreads();
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kSimtRows * Tile::kSlice; i += kSimtThreads) {
    const int row = i / Tile::kSlice, column = i % Tile::kSlice;
    if (row >= target.rows || column >= target.columns) continue;
    const std::int64_t index = row * target.row_stride + column * target.column_stride;
    elements.store(target.data + index * elements.bytes(), shared[i]);
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
