// cross_entropy and its gradient on the CPU.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Operands: logits (N, C) of any layout, contiguous int64 targets (N).
void cross_entropy(const KernelArgs& args);
/// Operands: contiguous gradient of the loss, logits, targets.
void cross_entropy_backward(const KernelArgs& args);

}  // namespace tenon::cpu
