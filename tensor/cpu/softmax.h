// softmax on the CPU along any axis, any strides.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

void softmax(const KernelArgs& args);

}  // namespace tenon::cpu
