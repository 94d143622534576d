// conv2d and its gradients on the CPU; all operands contiguous.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

void conv2d(const KernelArgs& args);
/// Operands: gradient of the output, weight.
void conv2d_backward_input(const KernelArgs& args);
/// Operands: gradient of the output, input.
void conv2d_backward_weight(const KernelArgs& args);

}  // namespace tenon::cpu
