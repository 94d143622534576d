// Matrix products by cuBLASLt, without split-K and with algorithms from its heuristic only, so that
// the same call gives the same bits in every run. 16-bit floats and float32 accumulate in float32
// (never TF32), float64 in float64. The descriptors and the algorithm of a problem are kept, keyed by
// everything they depend on; a call that repeats a problem costs one look-up.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "tensor/dtype.h"

namespace tenon::cuda {

/// One matrix of a product, row-major (M, K) unless `transposed`: then its memory is that of the
/// row-major transpose. `leading` is the stride between rows (of the transpose, if transposed),
/// `batch_stride` that between matrices, 0 where one serves all.
struct GemmOperand {
  const void* data = nullptr;
  bool transposed = false;
  std::int64_t leading = 1;
  std::int64_t batch_stride = 0;
};

/// C[b] = A[b] · B[b] + bias, C[b] row-major (m, n); m, n, k, batch >= 1.
struct GemmProblem {
  DType dtype = DType::float32;  // a floating one, of all matrices and the bias
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t batch = 1;
  GemmOperand a{};
  GemmOperand b{};
  void* c = nullptr;
  std::int64_t c_leading = 0;
  std::int64_t c_batch_stride = 0;
  const void* bias = nullptr;  // (n), or null; not for float64
  bool accumulates = false;    // C += instead of C =
};

/// Whether cuBLASLt has an algorithm for the problem; some combinations of layout and bias have none.
bool has_algorithm(Stream stream, const GemmProblem& problem);
/// Queues the product on `stream`; DeviceError when cuBLASLt has no algorithm for it.
void gemm(Stream stream, const GemmProblem& problem);

}  // namespace tenon::cuda
