// What batch_norm's kernels and those of its gradients share.
#pragma once

#include "tensor/kernel.h"

namespace tenon::cuda {

/// What follows the normalization in the same pass.
enum class BatchNormTail { none, relu, add_relu };

#if defined(__CUDACC__)
/// One channel's affine map. Gradients compute it again, to the same bits, to know a relu's sign.
template <class C>
struct NormalizedChannel {
  C mean;
  C scale;
  C bias;
  __device__ __forceinline__ C operator()(C x) const { return fma(x - mean, scale, bias); }
};
#endif

inline ImageLayout images_as_operands(const KernelArgs&) { return ImageLayout::as_operands; }

void register_batch_norm_backward_kernels();

}  // namespace tenon::cuda
