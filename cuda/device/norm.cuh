// Row normalizations in registers: statistics of a row that its group holds, and the gradient.
#pragma once

#include "cuda/device/rows.cuh"

namespace tenon::cuda {

template <class C>
struct RowStatistics {
  C mean;    // 0 without kCenters
  C factor;  // 1/√(mean of the squared deviations + eps)
};

/// The row becomes its deviations from the mean times the factor; without kCenters (rms_norm) the mean
/// counts as 0. `scratch` is group_reduce's; all threads of the block must call it.
template <bool kCenters, class T>
__device__ __forceinline__ RowStatistics<compute_type<T>> normalize(Row<T>& row,
                                                                    const RowGroup& group, int cols,
                                                                    double eps,
                                                                    compute_type<T>* scratch) {
  using C = compute_type<T>;
  C mean = C(0);
  if constexpr (kCenters) {
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
  return {mean, factor};
}

/// g, the gradient of the normalized row x̂, becomes that of the row: factor·(g - mean(g) - x̂·mean(g·x̂)),
/// without the first mean unless kCenters.
template <bool kCenters, class T>
__device__ __forceinline__ void normalize_backward(Row<T>& gradient, const Row<T>& normalized,
                                                   const RowGroup& group, int cols,
                                                   compute_type<T> factor,
                                                   compute_type<T>* scratch) {
  using C = compute_type<T>;
  C sum = C(0);
  C products = C(0);
  Row<T>::for_each_chunk(group, cols, [&](int chunk, int) {
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      sum += gradient.values[chunk][i];
      products += gradient.values[chunk][i] * normalized.values[chunk][i];
    }
  });
  C shift = C(0);
  if constexpr (kCenters) {
    shift = group_reduce(sum, group.lanes, scratch, Sum{}) / static_cast<C>(cols);
  }
  const C slope = group_reduce(products, group.lanes, scratch, Sum{}) / static_cast<C>(cols);
  Row<T>::for_each_chunk(group, cols, [&](int chunk, int) {
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      C& g = gradient.values[chunk][i];
      g = factor * (g - shift - normalized.values[chunk][i] * slope);
    }
  });
}

}  // namespace tenon::cuda
