// index_select, gather and their gradients on the CPU. Indices are contiguous, int64 or int32; one
// outside its range is a ValueError, thrown before anything is written.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Inputs: a contiguous tensor of any dtype and indices of slices along the attribute `dim`.
void run_index_select(const KernelArgs& args);
/// Adds the slices of a contiguous gradient, each to the one its index names.
void run_index_select_backward(const KernelArgs& args);
/// Inputs: a tensor of any strides and dtype, and contiguous indices of the output's shape.
void run_gather(const KernelArgs& args);
/// Inputs: a gradient of any strides and contiguous indices of its shape.
void run_gather_backward(const KernelArgs& args);

}  // namespace tenon::cpu
