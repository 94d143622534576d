// The kernels of randn, uniform, randint and randperm; the numbers are
// tensor/calls/random_values.h's.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

void randn(const KernelArgs& args);
void uniform(const KernelArgs& args);
void randint(const KernelArgs& args);
void randperm(const KernelArgs& args);

}  // namespace tenon::cpu
