// What cuBLASLt needs to know of a product: descriptors, and the algorithm that computes it. Internal to
// cuda/gemm.cpp and to the program that measures algorithms.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "cuda/gemm.h"
#include "cuda/gemm_table.h"
#include "cuda/handle.h"

namespace tenon::cuda {

/// Everything that descriptors and the choice of an algorithm depend on; compared as words.
struct GemmKey {
  std::array<std::int64_t, 13> sizes{};
  std::uint64_t alignments = 0;  // 4 bits each
  std::uint64_t flags = 0;
  friend bool operator==(const GemmKey&, const GemmKey&) = default;
};
GemmKey key_of(const GemmProblem& problem);

struct GemmKeyHash {
  std::size_t operator()(const GemmKey& key) const;
};

/// The least alignment of the problem's matrices, in bytes; at most 256.
std::uint32_t alignment_of(const GemmProblem& problem);

/// cuBLAS is column-major: D^T = B^T · A^T, so operands swap places and row-major becomes "no
/// transpose".
struct GemmDescriptors {
  LtMatmulDesc operation;
  LtMatrixLayout first;   // cuBLAS's A, our B
  LtMatrixLayout second;  // cuBLAS's B, our A
  LtMatrixLayout addend;
  LtMatrixLayout result;
};
/// Nothing for what cuBLASLt's documentation excludes.
std::optional<GemmDescriptors> describe(const GemmProblem& problem);

/// Up to `count` deterministic algorithms, the one that is expected to be fastest first. With `splits_k`
/// they may add parts of the sums by a second kernel.
std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, const GemmProblem& problem,
                                             const GemmDescriptors& descriptors, bool splits_k,
                                             int count);
GemmAlgorithm configuration_of(const cublasLtMatmulAlgo_t& algorithm);
/// The algorithm of that configuration; nothing where this library cannot compute the problem by it.
std::optional<cublasLtMatmulAlgo_t> algorithm_of(cublasLtHandle_t handle,
                                                 const GemmProblem& problem,
                                                 const GemmDescriptors& descriptors,
                                                 const GemmAlgorithm& configuration);
/// Queues the product by this algorithm; the addresses in `descriptors` are set to the problem's.
void run_algorithm(cublasLtHandle_t handle, Stream stream, const GemmProblem& problem,
                   const GemmDescriptors& descriptors, const cublasLtMatmulAlgo_t& algorithm);

}  // namespace tenon::cuda
