// conv2d and its gradients by Tenon's own kernels: what cuDNN's fall back to.
#pragma once

#include "tensor/kernel.h"

namespace tenon::cuda {

void conv2d_directly(const KernelArgs& args);
void conv2d_backward_input_directly(const KernelArgs& args);
void conv2d_backward_weight_directly(const KernelArgs& args);

}  // namespace tenon::cuda
