// Copies between strided layouts on the CPU, and the kernels of the ops that only move data.
#pragma once

#include "tensor/op.h"
#include "tensor/tensor_view.h"

namespace tenon::cpu {

/// Copies the elements; same sizes and dtype, any strides. The two may be the same memory, but must
/// not overlap otherwise.
void copy_strided(const TensorView& source, const TensorView& target);
/// Copies and converts the elements (rules: tensor/support/convert.h); same sizes, any strides and
/// dtypes.
void cast_strided(const TensorView& source, const TensorView& target);

/// The kernel of every view op, for callers that need the result in its own memory: copies operand
/// 0, seen through the op's view rule, into the output.
void run_view_copy(const KernelArgs& args);
/// The kernel entry of a view op.
Kernel view_kernel(std::string_view name);

}  // namespace tenon::cpu
