// Attention's gradient by wgmma: kernels for heads from 72 to 128; see attention_backward_wgmma_sums.cuh.
#include "cuda/kernels/attention_backward_wgmma_sums.cuh"

namespace tenon::cuda {

void launch_backward_wgmma_wide(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  launch_sides<128>(params, dtype, stream);
}

}  // namespace tenon::cuda
