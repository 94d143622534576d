// The gradient of attention with ordinary multiply-adds, for every floating dtype, any head sizes and
// strides. 16-bit floats compute in float32, float64 in float64.
//
//   P  = 2^(Q·Kᵀ·scale·log2(e) + mask·log2(e) - lse)      D = dropout mask, 1/(1-p) where kept
//   dV = (P∘D)ᵀ·dO        dS = P∘(D∘(dO·Vᵀ) - Σ dO∘O)     dQ = dS·K·scale     dK = dSᵀ·Q·scale
//
// First lse, unless the forward kept it, and Σ dO∘O of every query; then a pass for each gradient. A block owns 64 rows (queries
// for dQ, keys for dK and dV) and a slice of at most kSlice columns, walks over tiles of the other
// side, computes its tile of P or dS again, and multiplies it with what that side holds. The pass for
// an additive mask owns a tile of it and walks over everything that was repeated along it.
#include "cuda/kernels/attention_backward.h"
#include "cuda/kernels/attention_simt.cuh"

namespace tenon::cuda {
namespace {

enum class Pass : std::uint8_t { query, key, value, mask };

/// Compile-time facts of one kernel. Rows of a tile are queries, or keys in the passes for dK and dV.
template <class T_, Pass kPass_, int kColumns_, int kDepth_, int kSlice_>
struct BackwardTile {
  using T = T_;
  using C = compute_type<T>;
  static constexpr Pass kPass = kPass_;
  static constexpr bool kRowsAreKeys = kPass == Pass::key || kPass == Pass::value;
  static constexpr int kColumns = kColumns_;
  static constexpr int kDepth = kDepth_;
  static constexpr int kSlice = kSlice_;
  static constexpr int kLength = 16 / static_cast<int>(sizeof(C));
  static constexpr int kThreadColumns = kColumns / kAcross;
  [[maybe_unused]] static constexpr int kColumnSets = kSlice / (kAcross * kLength);
  static constexpr int kHeadStride = kDepth + kLength;
  static constexpr int kWeightStride = kColumns + kLength;
  static constexpr int kQueries = kRowsAreKeys ? kColumns : kSimtRows;
  static constexpr int kKeys = kRowsAreKeys ? kSimtRows : kColumns;
};

/// A matrix in device memory; elements of a row are neighbours.
template <class T>
struct Matrix {
  const T* data;
  std::int64_t stride;
  std::int64_t rows;
  std::int64_t columns;
};

/// The operands of one batch.
template <class T>
struct BackwardBatch {
  std::int64_t batch;
  Matrix<T> query, key, value, grad, output;
  const char* mask;
};

template <class Tile>
struct BackwardShared {
  using C = typename Tile::C;
  alignas(16) C rows[kSimtRows * Tile::kHeadStride];
  alignas(16) C columns[Tile::kColumns * Tile::kHeadStride];
  alignas(16) C values[Tile::kColumns * Tile::kSlice];
  alignas(16) C weights[kSimtRows * Tile::kWeightStride];
  C lse[Tile::kQueries];
  C delta[Tile::kQueries];
  std::uint8_t keep[Tile::kQueries * Tile::kKeys / 8];
  BackwardBatch<typename Tile::T> batch;
};

template <class T>
__device__ __forceinline__ Matrix<T> matrix_of(const AttentionParams& params, const void* data,
                                               const AttentionOperand& strides, std::int64_t batch,
                                               std::int64_t rows, std::int64_t columns) {
  return {static_cast<const T*>(data) + batch_offset(params, strides, batch), strides.row, rows,
          columns};
}

template <class T>
__device__ BackwardBatch<T> locate_batch(const AttentionBackwardParams& p, std::int64_t batch) {
  BackwardBatch<T> result;
  result.batch = batch;
  result.query = matrix_of<T>(p, p.query, p.query_strides, batch, p.length, p.head);
  result.key = matrix_of<T>(p, p.key, p.key_strides, batch, p.keys, p.head);
  result.value = matrix_of<T>(p, p.value, p.value_strides, batch, p.keys, p.head_v);
  result.grad = matrix_of<T>(p, p.grad, p.grad_strides, batch, p.length, p.head_v);
  result.output = matrix_of<T>(p, p.output, p.output_strides, batch, p.length, p.head_v);
  const std::int64_t element = p.mask_kind == AttentionMask::additive ? sizeof(T) : 1;
  result.mask =
      p.mask_kind == AttentionMask::none
          ? nullptr
          : static_cast<const char*>(p.mask) + batch_offset(p, p.mask_strides, batch) * element;
  return result;
}

/// sum += A·Bᵀ for the tile that starts at row `a0` of A and row `b0` of B.
template <class Tile>
__device__ __forceinline__ void add_products(
    BackwardShared<Tile>& shared, const Matrix<typename Tile::T>& a, std::int64_t a0,
    const Matrix<typename Tile::T>& b, std::int64_t b0,
    typename Tile::C (&sum)[kThreadRows][Tile::kThreadColumns], int y, int x) {
  using C = typename Tile::C;
  for (std::int64_t depth0 = 0; depth0 < a.columns; depth0 += Tile::kDepth) {
    __syncthreads();  // the tiles before these are read no more
    stage_tile<kSimtRows, Tile::kDepth, Tile::kHeadStride, C>(
        shared.rows, a.data + a0 * a.stride + depth0, a.stride, a.rows - a0, a.columns - depth0);
    stage_tile<Tile::kColumns, Tile::kDepth, Tile::kHeadStride, C>(
        shared.columns, b.data + b0 * b.stride + depth0, b.stride, b.rows - b0, b.columns - depth0);
    __syncthreads();
    const auto depth =
        static_cast<int>(min(a.columns - depth0, static_cast<std::int64_t>(Tile::kDepth)));
    add_row_products<Tile>(shared.rows, shared.columns, sum, depth, y, x);
  }
}

/// A score in units of log2, masked; the query and the key exist.
template <class T, class C>
__device__ __forceinline__ C finish_score(const AttentionParams& params, const char* mask,
                                          std::int64_t query, std::int64_t key, C score) {
  const C scaled = score * static_cast<C>(params.scale_log2);
  if (params.is_causal && key > query) return -static_cast<C>(INFINITY);
  if (params.mask_kind == AttentionMask::none) return scaled;
  return apply_mask<T>(params, mask, query, key, scaled);
}

/// Reads lse and Σ dO∘O of the tile's queries, and draws its dropout mask.
template <class Tile>
__device__ __forceinline__ void stage_queries(const AttentionBackwardParams& params,
                                              BackwardShared<Tile>& shared, std::int64_t query0,
                                              std::int64_t key0) {
  using C = typename Tile::C;
  const auto* statistics = static_cast<const C*>(params.statistics);
  const std::int64_t first = shared.batch.batch * params.length + query0;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kQueries; i += kSimtThreads) {
    const bool exists = query0 + i < params.length;
    shared.lse[i] = exists ? statistics[first + i] : C(0);
    shared.delta[i] = exists ? statistics[params.batches * params.length + first + i] : C(0);
  }
  if (!params.has_dropout) return;
  constexpr int kGroups = Tile::kKeys / 8;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kQueries * kGroups; i += kSimtThreads) {
    const std::int64_t row = first + i / kGroups, group = key0 / 8 + i % kGroups;
    if (params.keep_bits == nullptr) {
      shared.keep[i] = static_cast<std::uint8_t>(
          dropout_bits8(params.dropout_key, row, group, params.dropout_threshold));
    } else if (query0 + i / kGroups < params.length) {
      shared.keep[i] = params.keep_bits[row * params.keep_bits_stride + group];
    }
  }
}

/// The tile of dS, or of P∘D in the pass for dV, whose first row and column are given.
template <class Tile>
__device__ __forceinline__ void compute_weights(
    const AttentionBackwardParams& params, BackwardShared<Tile>& shared, std::int64_t row0,
    std::int64_t column0, typename Tile::C (&weight)[kThreadRows][Tile::kThreadColumns], int y,
    int x) {
  using C = typename Tile::C;
  constexpr bool kKeysFirst = Tile::kRowsAreKeys;
  const auto& batch = shared.batch;
  const std::int64_t query0 = kKeysFirst ? column0 : row0;
  const std::int64_t key0 = kKeysFirst ? row0 : column0;
  __syncthreads();
  stage_queries<Tile>(params, shared, query0, key0);
  __syncthreads();  // also for a head of size 0, where no product waits
  C d_probability[kThreadRows][Tile::kThreadColumns] = {};
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) weight[i][j] = C(0);
  }
  if constexpr (kKeysFirst) {
    add_products<Tile>(shared, batch.key, row0, batch.query, column0, weight, y, x);
  } else {
    add_products<Tile>(shared, batch.query, row0, batch.key, column0, weight, y, x);
  }
  if constexpr (Tile::kPass == Pass::key) {
    add_products<Tile>(shared, batch.value, row0, batch.grad, column0, d_probability, y, x);
  } else if constexpr (Tile::kPass != Pass::value) {
    add_products<Tile>(shared, batch.grad, row0, batch.value, column0, d_probability, y, x);
  }
  const C keep_scale = static_cast<C>(params.keep_scale);
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) {
      const int row = y + 8 * i, column = x + kAcross * j;
      const int query = kKeysFirst ? column : row, key = kKeysFirst ? row : column;
      C& w = weight[i][j];
      if (query0 + query >= params.length || key0 + key >= params.keys) {
        w = C(0);
        continue;
      }
      const C score =
          finish_score<typename Tile::T>(params, batch.mask, query0 + query, key0 + key, w);
      const C p = exp2(score - shared.lse[query]);
      bool kept = true;
      if (params.has_dropout) {
        kept = ((shared.keep[query * (Tile::kKeys / 8) + key / 8] >> (key % 8)) & 1U) != 0;
      }
      if constexpr (Tile::kPass == Pass::value) {
        w = kept ? p * keep_scale : p * C(0);
      } else {
        const C d = kept ? d_probability[i][j] * keep_scale : C(0);
        w = p * (d - shared.delta[query]);
      }
    }
  }
}

/// The matrix that the weights of a pass multiply, and where the result goes.
template <class Tile>
struct Target {
  Matrix<typename Tile::T> values;
  typename Tile::T* data;
  std::int64_t row_stride, column_stride;
  std::int64_t rows;
  typename Tile::C scale;
};

template <class Tile>
__device__ __forceinline__ Target<Tile> target_of(const AttentionBackwardParams& p,
                                                  const BackwardBatch<typename Tile::T>& batch) {
  using T = typename Tile::T;
  using C = typename Tile::C;
  const auto at = [&](void* data, const AttentionOperand& strides) {
    return static_cast<T*>(data) + batch_offset(p, strides, batch.batch);
  };
  if constexpr (Tile::kPass == Pass::query) {
    return {batch.key,
            at(p.d_query, p.d_query_strides),
            p.d_query_strides.row,
            p.d_query_strides.column,
            p.length,
            static_cast<C>(p.scale)};
  } else if constexpr (Tile::kPass == Pass::key) {
    return {batch.query, at(p.d_key, p.d_key_strides), p.d_key_strides.row, p.d_key_strides.column,
            p.keys,      static_cast<C>(p.scale)};
  } else {
    return {batch.grad,
            at(p.d_value, p.d_value_strides),
            p.d_value_strides.row,
            p.d_value_strides.column,
            p.keys,
            C(1)};
  }
}

/// dQ, dK or dV of 64 rows and a slice of columns.
template <class Tile>
__global__ __launch_bounds__(kSimtThreads) void backward_rows_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t row_blocks,
    std::int64_t slices) {
  using C = typename Tile::C;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<BackwardShared<Tile>*>(shared_bytes);
  if (block_index() >= params.batches * row_blocks * slices) return;
  const std::int64_t tile = divide(block_index(), slices);
  const std::int64_t slice0 = (block_index() - tile * slices) * Tile::kSlice;
  const std::int64_t batch = divide(tile, row_blocks);
  const std::int64_t row0 = (tile - batch * row_blocks) * kSimtRows;
  if (threadIdx.x == 0) shared.batch = locate_batch<typename Tile::T>(params, batch);
  __syncthreads();
  const int y = static_cast<int>(threadIdx.x) / kAcross;
  const int x = static_cast<int>(threadIdx.x) % kAcross;
  const Target<Tile> target = target_of<Tile>(params, shared.batch);

  C sum[kThreadRows][Tile::kColumnSets][Tile::kLength] = {};
  // Causal: query i sees keys up to i, key j is seen by queries from j on.
  const std::int64_t end =
      Tile::kRowsAreKeys ? params.length : visible_keys(params, row0 + kSimtRows);
  std::int64_t column0 = 0;
  if (Tile::kRowsAreKeys && params.is_causal) column0 = row0 / Tile::kColumns * Tile::kColumns;
  for (; column0 < end; column0 += Tile::kColumns) {
    C weight[kThreadRows][Tile::kThreadColumns];
    compute_weights<Tile>(params, shared, row0, column0, weight, y, x);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kThreadColumns; ++j) {
        shared.weights[(y + 8 * i) * Tile::kWeightStride + x + kAcross * j] = weight[i][j];
      }
    }
    const Matrix<typename Tile::T>& values = target.values;
    stage_tile<Tile::kColumns, Tile::kSlice, Tile::kSlice, C>(
        shared.values, values.data + column0 * values.stride + slice0, values.stride,
        values.rows - column0, values.columns - slice0);
    __syncthreads();
    add_weighted_rows<Tile>(shared.weights, shared.values, sum, Tile::kColumns, y, x);
  }
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const std::int64_t row = row0 + y + 8 * i;
    if (row >= target.rows) continue;
#pragma unroll
    for (int set = 0; set < Tile::kColumnSets; ++set) {
#pragma unroll
      for (int c = 0; c < Tile::kLength; ++c) {
        const std::int64_t column = slice0 + (set * kAcross + x) * Tile::kLength + c;
        if (column >= target.values.columns) continue;
        target.data[row * target.row_stride + column * target.column_stride] =
            convert<typename Tile::T>(sum[i][set][c] * target.scale);
      }
    }
  }
}

/// lse and Σ dO∘O of 64 queries.
template <class Tile>
__global__ __launch_bounds__(kSimtThreads) void statistics_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t row_blocks) {
  using C = typename Tile::C;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<BackwardShared<Tile>*>(shared_bytes);
  if (block_index() >= params.batches * row_blocks) return;
  const std::int64_t batch = divide(block_index(), row_blocks);
  const std::int64_t row0 = (block_index() - batch * row_blocks) * kSimtRows;
  if (threadIdx.x == 0) shared.batch = locate_batch<typename Tile::T>(params, batch);
  __syncthreads();
  const int y = static_cast<int>(threadIdx.x) / kAcross;
  const int x = static_cast<int>(threadIdx.x) % kAcross;

  C top[kThreadRows], sum[kThreadRows];
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    top[i] = -static_cast<C>(INFINITY);
    sum[i] = C(0);
  }
  const auto* lse = static_cast<const C*>(params.lse);
  const std::int64_t end = lse == nullptr ? visible_keys(params, row0 + kSimtRows) : 0;
  for (std::int64_t key0 = 0; key0 < end; key0 += Tile::kColumns) {
    C score[kThreadRows][Tile::kThreadColumns] = {};
    add_products<Tile>(shared, shared.batch.query, row0, shared.batch.key, key0, score, y, x);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const std::int64_t query = row0 + y + 8 * i;
      C highest = top[i];
#pragma unroll
      for (int j = 0; j < Tile::kThreadColumns; ++j) {
        const std::int64_t key = key0 + x + kAcross * j;
        C& s = score[i][j];
        const bool exists = query < params.length && key < params.keys;
        s = exists ? finish_score<typename Tile::T>(params, shared.batch.mask, query, key, s)
                   : -static_cast<C>(INFINITY);
        highest = max(highest, s);
      }
      highest = reduce_across(highest, [](C a, C b) { return max(a, b); });
      const C offset = highest == -static_cast<C>(INFINITY) ? C(0) : highest;
      sum[i] *= exp2(top[i] - offset);
      top[i] = highest;
#pragma unroll
      for (int j = 0; j < Tile::kThreadColumns; ++j) sum[i] += exp2(score[i][j] - offset);
    }
  }
  auto* statistics = static_cast<C*>(params.statistics);
#pragma unroll 1
  for (int i = 0; i < kThreadRows; ++i) {
    const std::int64_t query = row0 + y + 8 * i;
    const C total = reduce_across(sum[i], [](C a, C b) { return a + b; });
    C delta = C(0);
    if (query < params.length) {
      const auto* grad = shared.batch.grad.data + query * shared.batch.grad.stride;
      const auto* output = shared.batch.output.data + query * shared.batch.output.stride;
      for (std::int64_t c = x; c < params.head_v; c += kAcross) {
        delta += static_cast<C>(widen(grad[c])) * static_cast<C>(widen(output[c]));
      }
    }
    delta = reduce_across(delta, [](C a, C b) { return a + b; });
    if (x != 0 || query >= params.length) continue;
    const std::int64_t index = batch * params.length + query;
    // -inf where no key is visible
    statistics[index] =
        lse == nullptr ? top[i] + log2(total) : lse[index] * static_cast<C>(1 / kLn2);
    statistics[params.batches * params.length + index] = delta;
  }
}

/// Batch number `shared_index` of those that read matrix `matrix` of the mask.
__device__ __forceinline__ std::int64_t batch_of_matrix(const AttentionBackwardParams& params,
                                                        std::int64_t matrix,
                                                        std::int64_t shared_index) {
  std::int64_t batch = 0, stride = 1;
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    const std::int64_t size = params.batch_sizes[axis];
    std::int64_t& rest = params.d_mask_strides.batch[axis] == 0 ? shared_index : matrix;
    const std::int64_t quotient = divide(rest, size);
    batch += (rest - quotient * size) * stride;
    stride *= size;
    rest = quotient;
  }
  return batch;
}

/// How the pass for the mask is cut: tiles of one matrix, and how often an element is repeated.
struct MaskGrid {
  std::int64_t matrices;
  std::int64_t row_tiles, column_tiles;  // blocks of one matrix; 1 where it is repeated
  std::int64_t sharing;                  // batches that read one matrix
};

/// A tile of the gradient of an additive mask: dS summed over all that reads it.
template <class Tile>
__global__ __launch_bounds__(kSimtThreads) void backward_mask_kernel(
    const __grid_constant__ AttentionBackwardParams params, const MaskGrid grid) {
  using T = typename Tile::T;
  using C = typename Tile::C;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<BackwardShared<Tile>*>(shared_bytes);
  const std::int64_t tiles = grid.row_tiles * grid.column_tiles;
  if (block_index() >= grid.matrices * tiles) return;
  const std::int64_t matrix = divide(block_index(), tiles);
  const std::int64_t tile = block_index() - matrix * tiles;
  const std::int64_t row_tile = divide(tile, grid.column_tiles);
  const std::int64_t first_row = row_tile * kSimtRows;
  const std::int64_t first_column = (tile - row_tile * grid.column_tiles) * Tile::kColumns;
  const bool one_row = params.d_mask_strides.row == 0;
  const bool one_column = params.d_mask_strides.column == 0;
  const std::int64_t row_end = one_row ? params.length : first_row + 1;
  const std::int64_t column_end = one_column ? params.keys : first_column + 1;
  const int y = static_cast<int>(threadIdx.x) / kAcross;
  const int x = static_cast<int>(threadIdx.x) % kAcross;

  C sum[kThreadRows][Tile::kThreadColumns] = {};
  for (std::int64_t i = 0; i < grid.sharing; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      shared.batch = locate_batch<T>(params, batch_of_matrix(params, matrix, i));
    }
    __syncthreads();
    for (std::int64_t row0 = first_row; row0 < row_end; row0 += kSimtRows) {
      for (std::int64_t column0 = first_column; column0 < column_end; column0 += Tile::kColumns) {
        C weight[kThreadRows][Tile::kThreadColumns];
        compute_weights<Tile>(params, shared, row0, column0, weight, y, x);
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
          for (int c = 0; c < Tile::kThreadColumns; ++c) sum[r][c] += weight[r][c];
        }
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
    for (int c = 0; c < Tile::kThreadColumns; ++c) {
      shared.weights[(y + 8 * r) * Tile::kWeightStride + x + kAcross * c] = sum[r][c];
    }
  }
  __syncthreads();
  T* target = static_cast<T*>(params.d_mask) +
              batch_offset(params, params.d_mask_strides, batch_of_matrix(params, matrix, 0));
  const int rows = one_row ? 1 : kSimtRows, columns = one_column ? 1 : Tile::kColumns;
  for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += kSimtThreads) {
    const int row = i / columns, column = i % columns;
    if (first_row + row >= params.length || first_column + column >= params.keys) continue;
    C total = C(0);
    for (int r = row; r < (one_row ? kSimtRows : row + 1); ++r) {
      for (int c = column; c < (one_column ? Tile::kColumns : column + 1); ++c) {
        total += shared.weights[r * Tile::kWeightStride + c];
      }
    }
    target[(first_row + row) * params.d_mask_strides.row +
           (first_column + column) * params.d_mask_strides.column] = convert<T>(total);
  }
}

template <class T, Pass kPass>
using TileOf = std::conditional_t<std::is_same_v<T, double>, BackwardTile<T, kPass, 32, 32, 64>,
                                  BackwardTile<T, kPass, 64, 64, 64>>;

template <class T, Pass kPass>
void launch_rows(const AttentionBackwardParams& params, std::int64_t rows, std::int64_t columns,
                 Stream stream) {
  using Tile = TileOf<T, kPass>;
  const std::int64_t row_blocks = ceil_div(rows, kSimtRows);
  const std::int64_t slices = ceil_div(columns, Tile::kSlice);
  launch(stream, "attention_backward", backward_rows_kernel<Tile>,
         params.batches * row_blocks * slices, kSimtThreads, sizeof(BackwardShared<Tile>), params,
         row_blocks, slices);
}

template <class T>
void launch_mask(const AttentionBackwardParams& params, Stream stream) {
  using Tile = TileOf<T, Pass::mask>;
  MaskGrid grid{1, 1, 1, 1};
  for (int axis = 0; axis < params.batch_axes; ++axis) {
    (params.d_mask_strides.batch[axis] == 0 ? grid.sharing : grid.matrices) *=
        params.batch_sizes[axis];
  }
  if (params.d_mask_strides.row != 0) grid.row_tiles = ceil_div(params.length, kSimtRows);
  if (params.d_mask_strides.column != 0) grid.column_tiles = ceil_div(params.keys, Tile::kColumns);
  launch(stream, "attention_backward_mask", backward_mask_kernel<Tile>,
         grid.matrices * grid.row_tiles * grid.column_tiles, kSimtThreads,
         sizeof(BackwardShared<Tile>), params, grid);
}

template <class T>
void launch_statistics(const AttentionBackwardParams& params, Stream stream) {
  using Tile = TileOf<T, Pass::mask>;
  const std::int64_t row_blocks = ceil_div(params.length, kSimtRows);
  launch(stream, "attention_statistics", statistics_kernel<Tile>, params.batches * row_blocks,
         kSimtThreads, sizeof(BackwardShared<Tile>), params, row_blocks);
}

}  // namespace

void launch_backward_simt(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  dispatch_float(dtype, [&]<class T>() {
    launch_statistics<T>(params, stream);
    launch_rows<T, Pass::query>(params, params.length, params.head, stream);
    launch_rows<T, Pass::key>(params, params.keys, params.head, stream);
    launch_rows<T, Pass::value>(params, params.keys, params.head_v, stream);
    if (params.d_mask != nullptr) launch_mask<T>(params, stream);
  });
}

}  // namespace tenon::cuda
