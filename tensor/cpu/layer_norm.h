// layer_norm, rms_norm, their gradients and bias_dropout_residual_layer_norm on the CPU: each row is
// read once, kept in float (double for float64), and written once.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Operand 0 has any layout, the others are contiguous.
void layer_norm(const KernelArgs& args);
void rms_norm(const KernelArgs& args);

/// Operands grad and input have any layout, weight and, if there is a fourth operand, what is added to the
/// first output are contiguous; outputs are contiguous.
void layer_norm_backward(const KernelArgs& args);
void rms_norm_backward(const KernelArgs& args);

/// All operands have a dense last axis; the outputs of the gradient are contiguous.
void bias_dropout_residual_layer_norm(const KernelArgs& args);
void bias_dropout_residual_layer_norm_backward(const KernelArgs& args);

}  // namespace tenon::cpu
