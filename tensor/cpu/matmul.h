// matmul on the CPU: (…, M, K) x (…, K, N) -> (…, M, N) with broadcast batch axes, any strides.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

void matmul(const KernelArgs& args);

}  // namespace tenon::cpu
