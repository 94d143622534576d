// The line that print() writes about a tensor in host memory.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Writes the line about `values`, which holds the elements of `args.inputs[0]`, to print_stream().
void print_values(const KernelArgs& args, const TensorView& values);

}  // namespace tenon::cpu
