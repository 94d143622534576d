// What tensor/ calls and a folder above it defines: the only calls that go up. Both sides include this.
#pragma once

#include <span>
#include <vector>

#include "tensor/interpreter.h"

namespace tenon::autograd {

/// Runs a call, some operand of which requires a gradient, under `inner` and records it for backward;
/// in autograd/tape.cpp.
std::vector<Tensor> record(const Op& op, std::span<const Tensor> inputs, const Attrs& attrs,
                           Interpreter& inner);

}  // namespace tenon::autograd

namespace tenon::cuda {

/// Makes CUDA devices known, with all their kernels; in cuda/backend.cpp, where it is built.
void register_backend();

}  // namespace tenon::cuda
