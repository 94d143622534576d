// adam_step, sgd_step and global_norm on the CPU: contiguous operands, in tiles of fixed size.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

void adam_step(const KernelArgs& args);
void sgd_step(const KernelArgs& args);
void global_norm(const KernelArgs& args);

}  // namespace tenon::cpu
