// Which of Tenon's own kernels computes a matrix product, or whether cuBLASLt does: a pure function of
// the problem, fitted to measurements on an H200 (benchmarks/compare_gemm.py).
#pragma once

#include "cuda/device_limits.h"
#include "cuda/gemm.h"

namespace tenon::cuda {

enum class ProductChoice : std::uint8_t { cublaslt, skinny, wgmma, split };

/// cuBLASLt has the last word wherever it has the epilogue and no other kernel is clearly ahead.
ProductChoice choose_product(const GemmProblem& problem, const DeviceLimits& limits);

}  // namespace tenon::cuda
