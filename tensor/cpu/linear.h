// linear on the CPU: (…, K), (N, K), optional (N) -> (…, N), any strides.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

void linear(const KernelArgs& args);

}  // namespace tenon::cpu
