// batch_norm and its gradients on the CPU; all operands contiguous.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Operands: input, running mean and variance (both or neither), weight, bias (optional). Outputs:
/// the normalized input, the mean and 1/√(var + eps) it was normalized with, and, with running
/// statistics, their new values.
void batch_norm(const KernelArgs& args);
/// Operands: gradient of the output, input, weight (optional), mean, factor.
void batch_norm_backward(const KernelArgs& args);

}  // namespace tenon::cpu
