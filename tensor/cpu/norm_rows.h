// What the CPU kernels of normalizations share: rows that span several axes, one row normalized and
// differentiated, and sums over rows whose order does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/cpu/rows.h"
#include "tensor/parallel.h"

namespace tenon::cpu {

/// The last axes of a view as rows, made of segments along the last axis.
struct NormRows {
  Extents sizes, strides;              // of the row axes
  Extents inner_sizes, inner_strides;  // of the normalized axes but the last
  std::int64_t segment = 1;
  std::int64_t segment_stride = 1;

  NormRows(const TensorView& view, int normalized_axes) {
    const int first = view.rank() - normalized_axes;
    for (int axis = 0; axis < view.rank(); ++axis) {
      const bool last = axis == view.rank() - 1 && normalized_axes > 0;
      if (last) {
        segment = view.sizes[axis];
        segment_stride = view.strides[axis];
      } else {
        (axis < first ? sizes : inner_sizes).push_back(view.sizes[axis]);
        (axis < first ? strides : inner_strides).push_back(view.strides[axis]);
      }
    }
  }

  std::int64_t count() const { return sizes.product(); }
  /// Elements of a row.
  std::int64_t length() const { return inner_sizes.product() * segment; }

  /// Calls f(offset in the tensor, position in the row) for every segment of a row.
  template <class F>
  void for_each_segment(std::int64_t row, F f) const {
    const std::int64_t start = offset_of(row, sizes, strides);
    const std::int64_t segments = inner_sizes.product();
    for (std::int64_t i = 0; i < segments; ++i) {
      f(start + offset_of(i, inner_sizes, inner_strides), i * segment);
    }
  }

  template <class T>
  void load(const TensorView& view, std::int64_t row, compute_type<T>* x) const {
    for_each_segment(row, [&](std::int64_t offset, std::int64_t position) {
      load_row(view.as<const T>() + offset, segment_stride, segment, x + position);
    });
  }
  template <class T>
  void store(const compute_type<T>* x, std::int64_t row, const TensorView& view) const {
    for_each_segment(row, [&](std::int64_t offset, std::int64_t position) {
      store_row(x + position, segment, view.as<T>() + offset, segment_stride);
    });
  }
};

/// An optional contiguous operand of n elements, converted once per task; null when it is absent.
template <class T>
const compute_type<T>* converted(const TensorView& view, std::int64_t n, Scratch& scratch) {
  if (!view.present) return nullptr;
  auto* values = scratch.get<compute_type<T>>(n);
  load_row(view.as<const T>(), 1, n, values);
  return values;
}

/// x -= mean if `centers`; returns 1/√(mean(x²) + eps) of the result.
template <class C>
C center_and_scale(C* x, std::int64_t n, double eps, bool centers) {
  const auto count = static_cast<double>(n);
  const double squares =
      centers ? center_row(x, n, static_cast<C>(row_sum(x, n) / count)) : row_dot(x, x, n);
  return static_cast<C>(1 / std::sqrt(squares / count + eps));
}

/// g, the gradient of the normalized row x̂, becomes that of the row: factor·(g - mean(g) -
/// x̂·mean(g·x̂)), without the first mean unless `centers`. `factor` is center_and_scale's.
template <class C>
void norm_backward_row(C* g, const C* normalized, std::int64_t n, C factor, bool centers) {
  const auto count = static_cast<double>(n);
  const C shift = centers ? static_cast<C>(row_sum(g, n) / count) : C{0};
  const C slope = static_cast<C>(row_dot(g, normalized, n) / count);
  for (std::int64_t i = 0; i < n; ++i) g[i] = factor * (g[i] - shift - normalized[i] * slope);
}

/// Rows of one block when sums run over rows: at most 64 blocks, cut by size alone.
inline std::int64_t rows_per_block(std::int64_t rows, std::int64_t n) {
  constexpr std::int64_t kMaxBlocks = 64;
  return std::max(rows_per_task(n), (rows + kMaxBlocks - 1) / kMaxBlocks);
}

/// target[i] = Σ over the blocks, in order, of parts[block · stride + i], plus addend[i] if there is one.
template <class T>
void sum_blocks(const compute_type<T>* parts, std::int64_t blocks, std::int64_t stride,
                std::int64_t n, T* target, const T* addend = nullptr) {
  constexpr std::int64_t kColumns = 1024;
  parallel_ranges(n, kColumns, [&](std::int64_t begin, std::int64_t end) {
    double sums[kColumns] = {};
    for (std::int64_t block = 0; block < blocks; ++block) {
      const compute_type<T>* part = parts + block * stride;
      for (std::int64_t i = begin; i < end; ++i) sums[i - begin] += static_cast<double>(part[i]);
    }
    if (addend != nullptr) {
      for (std::int64_t i = begin; i < end; ++i) {
        sums[i - begin] += static_cast<double>(static_cast<compute_type<T>>(addend[i]));
      }
    }
    for (std::int64_t i = begin; i < end; ++i) {
      target[i] = static_cast<T>(static_cast<compute_type<T>>(sums[i - begin]));
    }
  });
}

}  // namespace tenon::cpu
