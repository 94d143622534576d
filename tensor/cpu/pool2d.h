// Max and average pooling and their gradients on the CPU; all operands contiguous.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Outputs: the values, and for each the index of its element in the input's plane (H, W).
void max_pool2d(const KernelArgs& args);
/// Operands: gradient of the values, indices.
void max_pool2d_backward(const KernelArgs& args);
void avg_pool2d(const KernelArgs& args);
void avg_pool2d_backward(const KernelArgs& args);

}  // namespace tenon::cpu
