// scaled_dot_product_attention on the CPU, without ever holding the (L, S) probabilities: online
// softmax over blocks of keys, after T. Dao et al., "FlashAttention", 2022 (arXiv:2205.14135).
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Any strides on every operand. Float (double for float64) inside, rounded once.
void attention(const KernelArgs& args);

}  // namespace tenon::cpu
