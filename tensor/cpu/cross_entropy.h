// cross_entropy, its gradient, and linear_cross_entropy on the CPU.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Logits (N, C) with any strides, target (N) -> losses, or their sum or mean. ValueError for a target
/// that is neither a class nor ignore_index.
void cross_entropy(const KernelArgs& args);
/// The gradient of the logits, from that of the loss, logits and target.
void cross_entropy_backward(const KernelArgs& args);
/// Input (R, K), weight (C, K), both with any strides, target (R) -> loss and, where there are three
/// outputs, the gradients of input and weight. The workspace holds the logits, then their gradient.
void linear_cross_entropy(const KernelArgs& args);
std::size_t linear_cross_entropy_workspace(const KernelArgs& args);

}  // namespace tenon::cpu
