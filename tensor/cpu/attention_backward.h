// The gradient of attention on the CPU; see attention_backward.cpp.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Operands (grad, query, key, value, output, attn_mask), any strides -> the gradients of query, key,
/// value and, where the attributes ask for it, of attn_mask, of any dense strides.
void attention_backward(const KernelArgs& args);

}  // namespace tenon::cpu
