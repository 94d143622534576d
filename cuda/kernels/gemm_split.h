// Matrix products of 16-bit floats with few rows or few tiles, by Tenon's own kernel for compute
// capability 9.0: small tiles, and sums over k cut into parts that the blocks of a cluster compute.
#pragma once

#include "cuda/device_limits.h"
#include "cuda/gemm.h"

namespace tenon::cuda {

/// A tile of D and the blocks that share its sum.
struct SplitPlan {
  int rows = 64;     // 64 or 128, not more than columns
  int columns = 64;  // 64 or 128
  int parts = 1;     // 1 to 8, not more than there are 64s in k
  friend bool operator==(const SplitPlan&, const SplitPlan&) = default;
};

/// The plan for D (m, n) and a sum over k.
SplitPlan plan_split(std::int64_t m, std::int64_t n, std::int64_t k, int multiprocessors);

/// Whether gemm_split can take the problem on such a GPU: 16-bit floats in and out, a batch of 1,
/// A not transposed, n a multiple of 8, rows of all matrices aligned to 16 bytes.
bool gemm_split_takes(const GemmProblem& problem, const DeviceLimits& limits);

/// Whether it is taken before cuBLASLt: for long sums of few rows and tiles, where an H200 is up to 1.2
/// times as fast as by the best of cuBLASLt's algorithms.
bool gemm_split_prefers(const GemmProblem& problem);

/// Queues a product that gemm_split_takes. With a gradient, `activation`, if given, is (m, n) and gets
/// gelu(aux).
void gemm_split(Stream stream, const char* name, const GemmProblem& problem, const SplitPlan& plan,
                void* activation = nullptr);

}  // namespace tenon::cuda
