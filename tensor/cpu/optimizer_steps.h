// adam_step and sgd_step on the CPU: contiguous operands, in tiles of fixed size.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

void adam_step(const KernelArgs& args);
void sgd_step(const KernelArgs& args);

}  // namespace tenon::cpu
