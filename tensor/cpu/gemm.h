// Matrix products on the CPU: C = A·B + bias for any strides, batched. Operands are packed into
// panels once, in parallel and converted to float (double for float64); then every tile of C, of a
// size that depends on the shape alone, is computed by one thread. So results do not depend on the
// number of threads.
#pragma once

#include <cstdint>

#include "tensor/cpu/panels.h"
#include "tensor/dtype.h"
#include "tensor/tensor_view.h"

namespace tenon::cpu {

/// C[b, r, n] = Σ_k A[b, r, k]·B[b, k, n] + bias[n]; b and r run over several axes each. All
/// strides count elements and may be 0; the elements of C must be distinct.
struct MatrixProduct {
  const void* a = nullptr;
  /// Instead of `a` in memory, for 32- and 64-bit floats: writes rows [row, row + count) of A, with
  /// count <= kPanelRows, to out[k · kPanelRows + i], zeros for the rows that `count` lacks.
  void (*write_rows)(const void* context, std::int64_t batch, std::int64_t row, int count,
                     void* out) = nullptr;
  const void* context = nullptr;
  const void* b = nullptr;
  const void* bias = nullptr;  // null: none
  void* c = nullptr;
  Extents batch;  // sizes of the batch axes and their strides in each operand
  Extents a_batch, b_batch, c_batch;
  Extents rows;  // sizes of the row axes and their strides
  Extents a_rows, c_rows;
  std::int64_t columns = 0;
  std::int64_t depth = 0;
  std::int64_t a_depth = 0, b_depth = 0;
  std::int64_t b_column = 0, c_column = 0, bias_column = 0;
};

/// T: float, double, Half or BFloat16. 16-bit products are summed in float and rounded once.
template <class T>
void gemm(const MatrixProduct& problem);

/// Copies `count` <= kWidth rows of `depth` elements to out[k · kWidth + row], zeros for the rest.
/// Row i starts at data + offsets[i]; its elements are `depth_stride` apart.
template <int kWidth, class T>
void pack_panel(const T* data, const std::int64_t* offsets, int count, std::int64_t depth,
                std::int64_t depth_stride, compute_type<T>* out);

}  // namespace tenon::cpu
