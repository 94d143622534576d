// Matrix products by cuBLASLt, with algorithms from a saved table (cuda/gemm_table.h) or else from its
// heuristic, and with deterministic reductions only, so that the same call gives the same bits in every
// run. 16-bit floats and float32 accumulate in float32 (never TF32), float64 in float64. The descriptors
// and the algorithm of a problem are kept, keyed by everything they depend on; a call that repeats a
// problem costs one look-up.
#pragma once

#include <cstdint>
#include <optional>

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

/// What is done to a product, its addend and its bias before they are stored. Of an activation x itself
/// goes to aux, if given; a gradient is D = x · activation'(aux). The order is that of a saved table.
enum class GemmEpilogue : std::uint8_t {
  none,
  gelu_tanh,
  gelu_tanh_gradient,
  gelu,  // exact
  gelu_gradient,
  relu,
  relu_gradient,
  silu,
  silu_gradient,
};
constexpr bool is_gradient(GemmEpilogue epilogue) {
  return epilogue != GemmEpilogue::none && static_cast<int>(epilogue) % 2 == 0;
}
constexpr GemmEpilogue gradient_of(GemmEpilogue activation) {
  return static_cast<GemmEpilogue>(static_cast<int>(activation) + 1);
}
/// Those that cuBLASLt has; its ReLU may lose NaN.
constexpr bool is_plain_or_gelu_tanh(GemmEpilogue epilogue) {
  return epilogue <= GemmEpilogue::gelu_tanh_gradient;
}

/// D[b] = epilogue(A[b] · B[b] + C[b] + bias), D row-major (m, n); m, n, k, batch >= 1.
struct GemmProblem {
  DType dtype = DType::float32;  // a floating one, of A and B
  std::optional<DType> result_dtype =
      {};  // of all else; `dtype` unless float32 for 16-bit operands
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t batch = 1;
  GemmOperand a{};
  GemmOperand b{};
  GemmOperand c{};  // no addend where data is null; never transposed; may be D itself
  void* d = nullptr;
  std::int64_t d_leading = 0;
  std::int64_t d_batch_stride = 0;
  const void* bias = nullptr;  // (n), or null; not for float64
  GemmEpilogue epilogue = GemmEpilogue::none;
  void* aux = nullptr;           // (m, n), 16-byte aligned, for a batch of 1
  std::int64_t aux_leading = 0;  // a multiple of 8

  DType stored_dtype() const { return result_dtype.value_or(dtype); }
};

/// Whether cuBLASLt has an algorithm for the problem; some combinations of layout and epilogue have
/// none. Of addresses only the alignment counts.
bool has_algorithm(Stream stream, const GemmProblem& problem);
/// Queues the product on `stream`; DeviceError when cuBLASLt has no algorithm for it.
void gemm(Stream stream, const GemmProblem& problem);

/// Whether the sum over k may be cut into parts that run at the same time and are added, in a fixed
/// order, by a second kernel: where it is long and the result has too few tiles to fill the GPU twice.
bool may_split_k(const GemmProblem& problem, int multiprocessors);

}  // namespace tenon::cuda
