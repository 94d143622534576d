#include "cuda/kernels/gemm_choice.h"

#include <algorithm>

#include "cuda/kernels/gemm_skinny.h"
#include "cuda/kernels/gemm_split.h"
#include "cuda/kernels/gemm_wgmma.h"

namespace tenon::cuda {
namespace {

/// cuBLASLt's product and a kernel for the activation: what a fused one is compared with.
ProductChoice choose_for_activation(const GemmProblem& p, const DeviceLimits& limits) {
  if (gemm_wgmma_takes(p, limits) && gemm_wgmma_fills(p)) return ProductChoice::wgmma;
  constexpr std::int64_t kFewRows = 32, kMostRows = 128, kMostTiles = 48;
  const std::int64_t tiles = ceil_div(p.m, 64) * ceil_div(p.n, 64);
  const bool small = p.m <= kFewRows || (p.m <= kMostRows && tiles <= kMostTiles);
  return small && gemm_split_takes(p, limits) ? ProductChoice::split : ProductChoice::cublaslt;
}

}  // namespace

ProductChoice choose_product(const GemmProblem& p, const DeviceLimits& limits) {
  if (gemm_skinny_takes(p) && gemm_skinny_prefers(p)) return ProductChoice::skinny;
  if (gemm_wgmma_takes(p, limits) && gemm_wgmma_prefers(p)) return ProductChoice::wgmma;
  if (!is_plain_or_gelu_tanh(p.epilogue)) return choose_for_activation(p, limits);
  if (gemm_split_takes(p, limits) && gemm_split_prefers(p)) return ProductChoice::split;
  return ProductChoice::cublaslt;
}

}  // namespace tenon::cuda
