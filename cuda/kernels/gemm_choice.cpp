#include "cuda/kernels/gemm_choice.h"

#include "cuda/kernels/gemm_skinny.h"
#include "cuda/kernels/gemm_split.h"
#include "cuda/kernels/gemm_wgmma.h"

namespace tenon::cuda {

ProductChoice choose_product(const GemmProblem& p, const DeviceLimits& limits) {
  if (gemm_skinny_takes(p) && gemm_skinny_prefers(p)) return ProductChoice::skinny;
  if (gemm_wgmma_takes(p, limits) && gemm_wgmma_prefers(p)) return ProductChoice::wgmma;
  if (gemm_split_takes(p, limits) && gemm_split_prefers(p)) return ProductChoice::split;
  return ProductChoice::cublaslt;
}

}  // namespace tenon::cuda
