// softmax, log_softmax and their gradients on the CPU: any axis, any layout.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

void softmax(const KernelArgs& args);
void log_softmax(const KernelArgs& args);
/// Operands: the gradient of the output, and the output.
void softmax_backward(const KernelArgs& args);
void log_softmax_backward(const KernelArgs& args);

}  // namespace tenon::cpu
