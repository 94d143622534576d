// Clipping of gradients by their global norm; optimizers do the same with max_grad_norm, without a
// pass over the gradients for the scaling.
#pragma once

#include <span>

#include "nn/module.h"
#include "tensor/ops/optimizer_steps.h"
#include "tensor/tensor.h"

namespace tenon::nn {

/// √(Σ g²) over all elements of all gradients, shape (): float64 if one of them is, else float32.
/// Undefined gradients are passed over; ValueError when none is left.
Tensor global_norm(std::span<const Tensor> gradients);
/// The same with min(1, max_norm/(norm + 1e-6)), PyTorch's coefficient, for a positive max_norm.
GlobalNorm global_norm(std::span<const Tensor> gradients, double max_norm);
/// Scales the parameters' gradients by global_norm's coefficient, so that their norm is at most
/// max_norm, and returns the norm before. 16-bit gradients are scaled in float32 and rounded once, by
/// which each may grow by half a unit in its last place. An infinite gradient becomes NaN and the
/// finite ones zeros, a NaN makes all NaN, as in PyTorch. ValueError, changing none, naming a parameter
/// that requires a gradient and has none, or one of another dtype, shape or device.
Tensor clip_grad_norm_(const Module::NamedTensors& parameters, double max_norm);

namespace detail {
/// ValueError naming a parameter that should have a gradient and has none.
void require_gradients(const Module::NamedTensors& parameters, std::span<const Tensor> gradients);
}  // namespace detail

}  // namespace tenon::nn
