// Row normalizations in registers: statistics of a row that its group holds, and of its gradient.
#pragma once

#include "cuda/device/rows.cuh"

namespace tenon::cuda {

/// Several sums at the cost of one group_reduce; `scratch` holds 32·kCount values.
template <int kCount, class C>
__device__ __forceinline__ void group_sums(C (&values)[kCount], int lanes, C* scratch) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    if (offset >= lanes) continue;
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(0xffffffffU, values[i], offset);
  }
  if (lanes <= kWarp) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  __syncthreads();  // an earlier reduction may still be reading
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch[warp * kCount + i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = scratch[i];
    for (int w = 1; w < lanes / kWarp; ++w) values[i] += scratch[w * kCount + i];
  }
}

/// The row becomes its deviations from the mean times 1/√(mean of their squares + eps); unless `centers`
/// (rms_norm) the mean counts as 0. `scratch` is group_reduce's; all threads of the block must call it.
template <class T, int kChunks>
__device__ __forceinline__ void normalize(Row<T, kChunks>& row, const RowGroup& group, int cols,
                                          double eps, bool centers, compute_type<T>* scratch) {
  using C = compute_type<T>;
  C mean = C(0);
  if (centers) {
    C sum = C(0);
    row.for_each(group, cols, [&](C& x) { sum += x; });
    mean = group_reduce(sum, group.lanes, scratch, Sum{}) / static_cast<C>(cols);
  }
  C squares = C(0);
  row.for_each(group, cols, [&](C& x) {
    x -= mean;
    squares += x * x;
  });
  const C variance = group_reduce(squares, group.lanes, scratch, Sum{}) / static_cast<C>(cols);
  const C factor = C(1) / sqrt_of(variance + static_cast<C>(eps));
  row.for_each(group, cols, [&](C& x) { x *= factor; });
}

/// What the gradient of a normalized row needs of the row x and of g, the gradient of its normalized
/// values x̂ = (x - mean)·factor.
template <class C>
struct NormStatistics {
  C mean;    // 0 in rms_norm
  C factor;  // 1/√(mean of the squared deviations + eps)
  C shift;   // mean(g); 0 in rms_norm
  C slope;   // mean(g·x̂)

  /// An element of the row's gradient.
  __device__ __forceinline__ C gradient(C g, C normalized) const {
    return factor * (g - shift - normalized * slope);
  }
};

/// Columns first … first + 7 of a vector; `absent` where there is none.
template <class T>
__device__ __forceinline__ void load_vector(const T* vector, int first, compute_type<T> absent,
                                            compute_type<T> (&values)[kRowGroup]) {
  if (vector != nullptr) return load_widened(vector + first, values);
#pragma unroll
  for (int i = 0; i < kRowGroup; ++i) values[i] = absent;
}

/// The statistics of x and g, the gradient of its normalized values, in two reductions; x becomes x̂.
/// `scratch` holds 64 values.
template <class T, int kChunks>
__device__ __forceinline__ NormStatistics<compute_type<T>> normalize_with_gradient(
    Row<T, kChunks>& x, const Row<T, kChunks>& g, const RowGroup& group, int cols, double eps,
    bool centers, compute_type<T>* scratch) {
  using C = compute_type<T>;
  const C count = static_cast<C>(cols);
  C means[2] = {};
  if (centers) {
    Row<T, kChunks>::for_each_chunk(group, cols, [&](int chunk, int) {
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) {
        means[0] += x.values[chunk][i];
        means[1] += g.values[chunk][i];
      }
    });
    group_sums(means, group.lanes, scratch);
    means[0] /= count;
    means[1] /= count;
  }
  C moments[2] = {};
  Row<T, kChunks>::for_each_chunk(group, cols, [&](int chunk, int) {
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      C& deviation = x.values[chunk][i];
      deviation -= means[0];
      moments[0] += deviation * deviation;
      moments[1] += g.values[chunk][i] * deviation;
    }
  });
  group_sums(moments, group.lanes, scratch);
  const C factor = C(1) / sqrt_of(moments[0] / count + static_cast<C>(eps));
  x.for_each(group, cols, [&](C& deviation) { deviation *= factor; });
  return {means[0], factor, means[1], moments[1] / count * factor};
}

}  // namespace tenon::cuda
