// The gradient of attention with ordinary multiply-adds, for every floating dtype, any head sizes
// and strides. 16-bit floats compute in float32, float64 in float64.
//
//   P  = 2^(Q·Kᵀ·scale·log2(e) + mask·log2(e) - lse)      D = dropout mask, 1/(1-p) where kept
//   dV = (P∘D)ᵀ·dO        dS = P∘(D∘(dO·Vᵀ) - Σ dO∘O)     dQ = dS·K·scale     dK = dSᵀ·Q·scale
//
// First lse, unless the forward kept it, and Σ dO∘O of every query; then a pass for each gradient,
// all by one kernel: they differ in what they load. A block owns 64 rows (queries for dQ, keys for
// dK and dV) and a slice of at most kSlice columns, walks over tiles of the other side, computes its
// tile of P or dS again, and multiplies it with what that side holds. The kernel for an additive
// mask owns a tile of it and walks over everything that was repeated along it.
#include "cuda/kernels/attention_backward.h"
#include "cuda/kernels/attention_simt.cuh"

namespace tenon::cuda {
namespace {

/// Which gradient a launch computes.
enum class Pass : std::uint8_t { query, key, value, mask };

/// Rows of a tile are queries, or keys in the passes for dK and dV; columns are of the other side.
__host__ __device__ __forceinline__ bool rows_are_keys(Pass pass) {
  return pass == Pass::key || pass == Pass::value;
}

/// Compile-time facts of the kernels that compute in C.
template <class C_, int kColumns_, int kDepth_, int kSlice_>
struct BackwardTile {
  using C = C_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kDepth = kDepth_;
  static constexpr int kSlice = kSlice_;
  static constexpr int kLength = 16 / static_cast<int>(sizeof(C));
  static constexpr int kThreadColumns = kColumns / kAcross;
  [[maybe_unused]] static constexpr int kColumnSets = kSlice / (kAcross * kLength);
  static constexpr int kHeadStride = kDepth + kLength;
  static constexpr int kWeightStride = kColumns + kLength;
  static constexpr int kMinBlocks = sizeof(C) == sizeof(float) ? 3 : 1;  // as shared memory allows
};

/// A matrix in device memory; elements of a row are neighbours.
struct Matrix {
  const char* data;
  std::int64_t stride;  // in elements
  std::int64_t rows;
  std::int64_t columns;
};

/// Those that share keys are one batch of the passes for dK and dV.
std::int64_t __host__ __device__ batches_of(const AttentionBackwardParams& p, Pass pass) {
  return rows_are_keys(pass) ? p.key_batches : p.batches;
}

/// The operands of one batch, and how its tiles lie: as numbers that are loaded, because for a
/// condition the compiler would write the kernel twice.
struct BackwardBatch {
  int keys_down;  // 1 where rows are keys, else 0
  int groups;     // of 8 keys of a tile
  std::int64_t batch;
  Matrix query, key, value, grad, output;
  const char* mask;
};

template <class Tile>
struct BackwardShared {
  using C = typename Tile::C;
  struct Inputs {
    alignas(16) C rows[kSimtRows * Tile::kHeadStride];
    alignas(16) C columns[Tile::kColumns * Tile::kHeadStride];
    alignas(16) C values[Tile::kColumns * Tile::kSlice];
  };
  union {
    Inputs inputs;
    C result[kSimtRows * Tile::kSlice];  // at the end
  };
  static_assert(sizeof(Inputs) >= sizeof(C) * kSimtRows * Tile::kSlice);
  alignas(16) C weights[kSimtRows * Tile::kWeightStride];
  C lse[kSimtRows];  // of the tile's queries, of which there are no more
  C delta[kSimtRows];
  std::uint8_t keep[kSimtRows * Tile::kColumns / 8];
  BackwardBatch batch;
};

template <class Tile>
__device__ __forceinline__ BackwardBatch locate_batch(const AttentionBackwardParams& p,
                                                      const Elements<typename Tile::C>& elements,
                                                      std::int64_t batch, Pass pass) {
  std::int64_t query = 0, key = 0, value = 0, grad = 0, output = 0, mask = 0;
  std::int64_t rest = batch;
#pragma unroll 1
  for (int axis = p.batch_axes - 1; axis >= 0; --axis) {
    const std::int64_t quotient = divide(rest, p.batch_sizes[axis]);
    const std::int64_t index = rest - quotient * p.batch_sizes[axis];
    rest = quotient;
    query += index * p.query_strides.batch[axis];
    key += index * p.key_strides.batch[axis];
    value += index * p.value_strides.batch[axis];
    grad += index * p.grad_strides.batch[axis];
    output += index * p.output_strides.batch[axis];
    mask += index * p.mask_strides.batch[axis];
  }
  const auto at = [&](const void* data, std::int64_t offset) {
    return static_cast<const char*>(data) + offset * elements.bytes();
  };
  const bool keys_first = rows_are_keys(pass);
  return {keys_first ? 1 : 0,
          (keys_first ? kSimtRows : Tile::kColumns) / 8,
          batch,
          {at(p.query, query), p.query_strides.row, p.length, p.head},
          {at(p.key, key), p.key_strides.row, p.keys, p.head},
          {at(p.value, value), p.value_strides.row, p.keys, p.head_v},
          {at(p.grad, grad), p.grad_strides.row, p.length, p.head_v},
          {at(p.output, output), p.output_strides.row, p.length, p.head_v},
          p.mask_kind == AttentionMask::boolean ? static_cast<const char*>(p.mask) + mask
                                                : at(p.mask, mask)};
}

/// sum += A·Bᵀ for the tile that starts at row `a0` of A and row `b0` of B.
template <class Tile>
__device__ __forceinline__ void add_products(
    typename BackwardShared<Tile>::Inputs& shared, const Elements<typename Tile::C>& elements,
    const Matrix& a, std::int64_t a0, const Matrix& b, std::int64_t b0,
    typename Tile::C (&sum)[kThreadRows][Tile::kThreadColumns], int y, int x) {
  for (std::int64_t depth0 = 0; depth0 < a.columns; depth0 += Tile::kDepth) {
    __syncthreads();  // the tiles before these are read no more
    stage_tile<kSimtRows, Tile::kDepth, Tile::kHeadStride>(
        shared.rows, elements, a.data + (a0 * a.stride + depth0) * elements.bytes(), a.stride,
        a.rows - a0, a.columns - depth0);
    stage_tile<Tile::kColumns, Tile::kDepth, Tile::kHeadStride>(
        shared.columns, elements, b.data + (b0 * b.stride + depth0) * elements.bytes(), b.stride,
        b.rows - b0, b.columns - depth0);
    __syncthreads();
    const auto depth =
        static_cast<int>(min(a.columns - depth0, static_cast<std::int64_t>(Tile::kDepth)));
    add_row_products<Tile>(shared.rows, shared.columns, sum, depth, y, x);
  }
}

/// Copies the mask of a tile of scores, where there is one, to shared.weights.
template <class Tile>
__device__ __forceinline__ void stage_mask(const AttentionBackwardParams& params,
                                           const Elements<typename Tile::C>& elements,
                                           BackwardShared<Tile>& shared, bool keys_first,
                                           std::int64_t query0, std::int64_t key0) {
  if (params.mask_kind == AttentionMask::none) return;
  const AttentionOperand& mask = params.mask_strides;
  const int width = params.mask_kind == AttentionMask::boolean ? 1 : elements.bytes();
  const char* first = shared.batch.mask + (query0 * mask.row + key0 * mask.column) * width;
  const std::int64_t queries = params.length - query0, keys = params.keys - key0;
  cuda::stage_mask<Tile::kColumns, Tile::kWeightStride>(
      shared.weights, elements, params.mask_kind, first, keys_first ? mask.column : mask.row,
      keys_first ? mask.row : mask.column, keys_first ? keys : queries,
      keys_first ? queries : keys);
}

/// Which scores of a tile exist, and which of them causality hides: keys `reach` after the query.
struct TileEdges {
  int queries, keys, reach;

  __device__ __forceinline__ TileEdges(const AttentionParams& params, std::int64_t query0,
                                       std::int64_t key0)
      : queries(clamp(params.length - query0)),
        keys(clamp(params.keys - key0)),
        reach(params.is_causal ? clamp(query0 - key0) : kSimtRows) {}

  /// As far as a tile of kSimtRows rows and columns, or fewer, goes.
  static __device__ __forceinline__ int clamp(std::int64_t count) {
    return static_cast<int>(max(min(count, std::int64_t{kSimtRows}), std::int64_t{-kSimtRows}));
  }
};

/// Scores in units of log2, masked, but for causality.
template <class Tile>
__device__ __forceinline__ void finish_scores(
    const AttentionBackwardParams& params, const BackwardShared<Tile>& shared,
    typename Tile::C (&score)[kThreadRows][Tile::kThreadColumns], int y, int x) {
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) {
      score[i][j] *= static_cast<typename Tile::C>(params.scale_log2);
    }
  }
  add_mask<Tile>(params.mask_kind, shared.weights, score, y, x);
}

/// Reads lse and Σ dO∘O of the tile's queries, and draws its dropout mask.
template <class Tile>
__device__ __forceinline__ void stage_queries(const AttentionBackwardParams& params,
                                              BackwardShared<Tile>& shared, Pass pass,
                                              std::int64_t query0, std::int64_t key0) {
  using C = typename Tile::C;
  const bool keys_first = rows_are_keys(pass);
  const int queries = keys_first ? Tile::kColumns : kSimtRows;
  const int groups = (keys_first ? kSimtRows : Tile::kColumns) / 8;
  const auto* statistics = static_cast<const C*>(params.statistics);
  const std::int64_t first = shared.batch.batch * params.length + query0;
  const int thread = static_cast<int>(threadIdx.x);
  static_assert(Tile::kColumns <= kSimtRows && kSimtRows <= kSimtThreads);
  if (thread < queries) {
    const bool exists = query0 + thread < params.length;
    shared.lse[thread] = exists ? statistics[first + thread] : C(0);
    shared.delta[thread] = exists && pass != Pass::value
                               ? statistics[params.batches * params.length + first + thread]
                               : C(0);
  }
#pragma unroll 1
  for (int i = thread; i < kSimtRows * Tile::kColumns / 8; i += kSimtThreads) {
    const std::int64_t row = first + i / groups, group = key0 / 8 + i % groups;
    if (!params.has_dropout) {
      shared.keep[i] = 0xff;
    } else if (params.keep_bits == nullptr) {
      shared.keep[i] = static_cast<std::uint8_t>(
          dropout_bits8(params.dropout_key, row, group, params.dropout_threshold));
    } else if (query0 + i / groups < params.length) {
      shared.keep[i] = params.keep_bits[row * params.keep_bits_stride + group];
    }
  }
}

/// Scores of a tile become dS, or P∘D in the pass for dV, whose d_probability is 1 and delta 0.
template <class Tile>
__device__ __forceinline__ void finish_weights(
    const AttentionBackwardParams& params, const BackwardShared<Tile>& shared,
    const TileEdges& edges,
    const typename Tile::C (&d_probability)[kThreadRows][Tile::kThreadColumns],
    typename Tile::C (&weight)[kThreadRows][Tile::kThreadColumns], int y, int x) {
  using C = typename Tile::C;
  const int groups = shared.batch.groups;
  const C keep_scale = static_cast<C>(params.keep_scale);
  const int keys_down = shared.batch.keys_down, keys_along = 1 - keys_down;
  finish_scores<Tile>(params, shared, weight, y, x);
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) {
      const int row = y + 8 * i, column = x + kAcross * j;
      const int query = row * keys_along + column * keys_down;
      const int key = row * keys_down + column * keys_along;
      const bool hidden = key - query > edges.reach;
      const C score = hidden ? -static_cast<C>(INFINITY) : weight[i][j];
      const C p = exp2(score - shared.lse[query]);
      const bool kept = ((shared.keep[query * groups + key / 8] >> (key % 8)) & 1U) != 0;
      const C d = kept ? d_probability[i][j] * keep_scale : C(0);
      const bool exists = query < edges.queries && key < edges.keys;
      weight[i][j] = exists ? p * (d - shared.delta[query]) : C(0);
    }
  }
}

/// The tile of dS, or of P∘D in the pass for dV, whose first row and column are given.
template <class Tile>
__device__ __forceinline__ void compute_weights(
    const AttentionBackwardParams& params, const Elements<typename Tile::C>& elements,
    BackwardShared<Tile>& shared, Pass pass, std::int64_t row0, std::int64_t column0,
    typename Tile::C (&weight)[kThreadRows][Tile::kThreadColumns], int y, int x) {
  using C = typename Tile::C;
  const bool keys_first = rows_are_keys(pass);
  const auto& batch = shared.batch;
  const std::int64_t query0 = keys_first ? column0 : row0;
  const std::int64_t key0 = keys_first ? row0 : column0;
  __syncthreads();
  stage_queries<Tile>(params, shared, pass, query0, key0);
  stage_mask<Tile>(params, elements, shared, keys_first, query0, key0);
  __syncthreads();  // also for a head of size 0, where no product waits
  C d_probability[kThreadRows][Tile::kThreadColumns];
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) weight[i][j] = pass == Pass::value ? C(1) : C(0);
  }
  // dO·Vᵀ, or its transpose, then scores: a loop, so that the code is there once.
#pragma unroll 1
  for (bool scores = pass == Pass::value;; scores = true) {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kThreadColumns; ++j) {
        d_probability[i][j] = weight[i][j];
        weight[i][j] = C(0);
      }
    }
    const Matrix& of_queries = scores ? batch.query : batch.grad;
    const Matrix& of_keys = scores ? batch.key : batch.value;
    add_products<Tile>(shared.inputs, elements, keys_first ? of_keys : of_queries, row0,
                       keys_first ? of_queries : of_keys, column0, weight, y, x);
    if (scores) break;
  }
  const TileEdges edges(params, query0, key0);
  finish_weights<Tile>(params, shared, edges, d_probability, weight, y, x);
}

/// The matrix that the weights of a pass multiply, and where the result goes.
struct Target {
  const Matrix* values;
  void* data;
  const AttentionOperand* strides;
  std::int64_t rows;
  double scale;
};

__device__ __forceinline__ Target target_of(const AttentionBackwardParams& p,
                                            const BackwardBatch& batch, Pass pass) {
  if (pass == Pass::query) return {&batch.key, p.d_query, &p.d_query_strides, p.length, p.scale};
  if (pass == Pass::key) return {&batch.query, p.d_key, &p.d_key_strides, p.keys, p.scale};
  return {&batch.grad, p.d_value, &p.d_value_strides, p.keys, 1};
}

/// A slice of columns of a gradient's rows, and what is being added to it.
template <class Tile>
using SliceSums = typename Tile::C[kThreadRows][Tile::kColumnSets][Tile::kLength];

/// Adds to the rows from `row0` on what the tiles of the other side in the batch at hand give.
template <class Tile>
__device__ __forceinline__ void add_batch(const AttentionBackwardParams& params,
                                          const Elements<typename Tile::C>& elements,
                                          BackwardShared<Tile>& shared, Pass pass,
                                          const Matrix& values, std::int64_t row0,
                                          std::int64_t slice0, SliceSums<Tile>& sum, int y, int x) {
  // Causal: query i sees keys up to i, key j is seen by queries from j on.
  const bool keys_first = rows_are_keys(pass);
  const std::int64_t end = keys_first ? params.length : visible_keys(params, row0 + kSimtRows);
  std::int64_t column0 = 0;
  if (keys_first && params.is_causal) column0 = row0 / Tile::kColumns * Tile::kColumns;
  for (; column0 < end; column0 += Tile::kColumns) {
    typename Tile::C weight[kThreadRows][Tile::kThreadColumns];
    compute_weights<Tile>(params, elements, shared, pass, row0, column0, weight, y, x);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kThreadColumns; ++j) {
        shared.weights[(y + 8 * i) * Tile::kWeightStride + x + kAcross * j] = weight[i][j];
      }
    }
    stage_tile<Tile::kColumns, Tile::kSlice, Tile::kSlice>(
        shared.inputs.values, elements,
        values.data + (column0 * values.stride + slice0) * elements.bytes(), values.stride,
        values.rows - column0, values.columns - slice0);
    __syncthreads();
    add_weighted_rows<Tile>(shared.weights, shared.inputs.values, sum, Tile::kColumns, y, x);
  }
}

/// kSimtRows rows of a gradient, kSlice columns of them.
template <class Tile>
__global__ __launch_bounds__(kSimtThreads, Tile::kMinBlocks) void backward_rows_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t row_blocks,
    std::int64_t slices, Pass pass, Elements<typename Tile::C> elements) {
  using C = typename Tile::C;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<BackwardShared<Tile>*>(shared_bytes);
  if (block_index() >= batches_of(params, pass) * row_blocks * slices) return;
  const std::int64_t tile = divide(block_index(), slices);
  const std::int64_t slice0 = (block_index() - tile * slices) * Tile::kSlice;
  const std::int64_t members = rows_are_keys(pass) ? params.group : 1;
  const std::int64_t batch0 = divide(tile, row_blocks) * members;
  const std::int64_t row0 = (tile - divide(tile, row_blocks) * row_blocks) * kSimtRows;
  const int y = static_cast<int>(threadIdx.x) / kAcross;
  const int x = static_cast<int>(threadIdx.x) % kAcross;
  const Target target = target_of(params, shared.batch, pass);

  SliceSums<Tile> sum = {};
#pragma unroll 1
  for (std::int64_t batch = batch0; batch < batch0 + members; ++batch) {
    __syncthreads();  // the batch before this one is read no more
    if (threadIdx.x == 0) shared.batch = locate_batch<Tile>(params, elements, batch, pass);
    __syncthreads();
    add_batch<Tile>(params, elements, shared, pass, *target.values, row0, slice0, sum, y, x);
  }
  const C scale = static_cast<C>(target.scale);
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int set = 0; set < Tile::kColumnSets; ++set) {
#pragma unroll
      for (int c = 0; c < Tile::kLength; ++c) sum[i][set][c] *= scale;
    }
  }
  __syncthreads();  // the last tiles are read no more
  const AttentionOperand& strides = *target.strides;
  const std::int64_t first =
      batch_offset(params, strides, batch0) + row0 * strides.row + slice0 * strides.column;
  store_tile<Tile>({static_cast<char*>(target.data) + first * elements.bytes(), strides.row,
                    strides.column, target.rows - row0, target.values->columns - slice0},
                   elements, sum, shared.result, y, x);
}

/// lse and Σ dO∘O of 64 queries.
template <class Tile>
__global__ __launch_bounds__(kSimtThreads) void statistics_kernel(
    const __grid_constant__ AttentionBackwardParams params, std::int64_t row_blocks,
    Elements<typename Tile::C> elements) {
  using C = typename Tile::C;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<BackwardShared<Tile>*>(shared_bytes);
  if (block_index() >= params.batches * row_blocks) return;
  const std::int64_t batch = divide(block_index(), row_blocks);
  const std::int64_t row0 = (block_index() - batch * row_blocks) * kSimtRows;
  if (threadIdx.x == 0) shared.batch = locate_batch<Tile>(params, elements, batch, Pass::query);
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
    __syncthreads();  // the mask before this one is read no more
    stage_mask<Tile>(params, elements, shared, false, row0, key0);
    __syncthreads();
    C score[kThreadRows][Tile::kThreadColumns] = {};
    add_products<Tile>(shared.inputs, elements, shared.batch.query, row0, shared.batch.key, key0,
                       score, y, x);
    finish_scores<Tile>(params, shared, score, y, x);
    const TileEdges edges(params, row0, key0);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int query = y + 8 * i;
      C highest = top[i];
#pragma unroll
      for (int j = 0; j < Tile::kThreadColumns; ++j) {
        const int key = x + kAcross * j;
        C& s = score[i][j];
        const bool hidden = key - query > edges.reach;
        if (hidden || query >= edges.queries || key >= edges.keys) s = -static_cast<C>(INFINITY);
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
      const int width = elements.bytes();
      const char* grad = shared.batch.grad.data + query * shared.batch.grad.stride * width;
      const char* output = shared.batch.output.data + query * shared.batch.output.stride * width;
      elements.with_loader([&](const auto& load) {
        for (std::int64_t c = x; c < params.head_v; c += kAcross) {
          delta += load(grad + c * width) * load(output + c * width);
        }
      });
    }
    delta = reduce_across(delta, [](C a, C b) { return a + b; });
    if (x != 0 || query >= params.length) continue;
    const std::int64_t index = batch * params.length + query;
    C of_scores = lse == nullptr ? top[i] + log2(total) : lse[index] * static_cast<C>(1 / kLn2);
    if (params.mask_kind != AttentionMask::none) of_scores = lse_of_masked(of_scores);
    statistics[index] = of_scores;
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
    const __grid_constant__ AttentionBackwardParams params, const MaskGrid grid,
    Elements<typename Tile::C> elements) {
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
      shared.batch =
          locate_batch<Tile>(params, elements, batch_of_matrix(params, matrix, i), Pass::mask);
    }
    __syncthreads();
    for (std::int64_t row0 = first_row; row0 < row_end; row0 += kSimtRows) {
      for (std::int64_t column0 = first_column; column0 < column_end; column0 += Tile::kColumns) {
        C weight[kThreadRows][Tile::kThreadColumns];
        compute_weights<Tile>(params, elements, shared, Pass::mask, row0, column0, weight, y, x);
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
  const std::int64_t start =
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
    const std::int64_t index = start + (first_row + row) * params.d_mask_strides.row +
                               (first_column + column) * params.d_mask_strides.column;
    elements.store(static_cast<char*>(params.d_mask) + index * elements.bytes(), total);
  }
}

template <class C>
using TileOf = std::conditional_t<std::is_same_v<C, double>, BackwardTile<C, 32, 32, 64>,
                                  BackwardTile<C, 64, 64, 64>>;

template <class C>
void launch_rows(const AttentionBackwardParams& params, Pass pass, std::int64_t rows,
                 std::int64_t columns, const Elements<C>& elements, Stream stream) {
  using Tile = TileOf<C>;
  const std::int64_t row_blocks = ceil_div(rows, kSimtRows);
  const std::int64_t slices = ceil_div(columns, Tile::kSlice);
  launch(stream, "attention_backward", backward_rows_kernel<Tile>,
         batches_of(params, pass) * row_blocks * slices, kSimtThreads, sizeof(BackwardShared<Tile>),
         params, row_blocks, slices, pass, elements);
}

template <class C>
void launch_mask(const AttentionBackwardParams& params, const Elements<C>& elements,
                 Stream stream) {
  using Tile = TileOf<C>;
  MaskGrid grid{1, 1, 1, 1};
  for (int axis = 0; axis < params.batch_axes; ++axis) {
    (params.d_mask_strides.batch[axis] == 0 ? grid.sharing : grid.matrices) *=
        params.batch_sizes[axis];
  }
  if (params.d_mask_strides.row != 0) grid.row_tiles = ceil_div(params.length, kSimtRows);
  if (params.d_mask_strides.column != 0) grid.column_tiles = ceil_div(params.keys, Tile::kColumns);
  launch(stream, "attention_backward_mask", backward_mask_kernel<Tile>,
         grid.matrices * grid.row_tiles * grid.column_tiles, kSimtThreads,
         sizeof(BackwardShared<Tile>), params, grid, elements);
}

template <class C>
void launch_statistics(const AttentionBackwardParams& params, const Elements<C>& elements,
                       Stream stream) {
  using Tile = TileOf<C>;
  const std::int64_t row_blocks = ceil_div(params.length, kSimtRows);
  launch(stream, "attention_statistics", statistics_kernel<Tile>, params.batches * row_blocks,
         kSimtThreads, sizeof(BackwardShared<Tile>), params, row_blocks, elements);
}

template <class C>
void launch_passes(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  const Elements<C> elements{dtype};
  launch_statistics(params, elements, stream);
  launch_rows(params, Pass::query, params.length, params.head, elements, stream);
  launch_rows(params, Pass::key, params.keys, params.head, elements, stream);
  launch_rows(params, Pass::value, params.keys, params.head_v, elements, stream);
  if (params.d_mask != nullptr) launch_mask(params, elements, stream);
}

}  // namespace

void launch_backward_simt(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  if (dtype == DType::float64) return launch_passes<double>(params, dtype, stream);
  launch_passes<float>(params, dtype, stream);
}

std::int64_t backward_simt_shared_bytes(DType dtype) {
  return dtype == DType::float64 ? sizeof(BackwardShared<TileOf<double>>)
                                 : sizeof(BackwardShared<TileOf<float>>);
}

}  // namespace tenon::cuda
