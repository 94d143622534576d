// Attention's gradient by wgmma: the launch, and kernels for heads up to 64; see
// attention_backward_wgmma_sums.cuh.
#include "cuda/kernels/attention_backward_wgmma_sums.cuh"

namespace tenon::cuda {

void launch_backward_wgmma(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  if (std::max(params.head, params.head_v) > 64) {
    return launch_backward_wgmma_wide(params, dtype, stream);
  }
  launch_sides<64>(params, dtype, stream);
}

}  // namespace tenon::cuda
