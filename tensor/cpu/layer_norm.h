// layer_norm and bias_dropout_residual_layer_norm on the CPU: each row is read once, kept in float
// (double for float64), and written once.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Operand 0 has a dense last axis, the others are contiguous.
void layer_norm(const KernelArgs& args);

/// All operands have a dense last axis.
void bias_dropout_residual_layer_norm(const KernelArgs& args);

}  // namespace tenon::cpu
