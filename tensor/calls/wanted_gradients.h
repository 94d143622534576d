// Gradient ops whose outputs are the gradients asked for: of input, weight and bias, in this order.
#pragma once

#include "tensor/kernel.h"

namespace tenon::ops {

/// The outputs of such a call; null where not asked for. `A` has the flags input, weight and bias.
struct WantedGradients {
  const TensorView* input = nullptr;
  const TensorView* weight = nullptr;
  const TensorView* bias = nullptr;

  template <class A>
  WantedGradients(const KernelArgs& args, const A& attrs) {
    const TensorView* next = args.outputs.data();
    if (attrs.input) input = next++;
    if (attrs.weight) weight = next++;
    if (attrs.bias) bias = next++;
  }
};

/// The same for bias_dropout_residual_layer_norm_backward.
struct WantedResidualNormGradients {
  const TensorView* input = nullptr;
  const TensorView* bias = nullptr;
  const TensorView* residual = nullptr;
  const TensorView* weight = nullptr;
  const TensorView* norm_bias = nullptr;

  template <class A>
  WantedResidualNormGradients(const KernelArgs& args, const A& attrs) {
    const TensorView* next = args.outputs.data();
    if (attrs.input) input = next++;
    if (attrs.bias) bias = next++;
    if (attrs.residual) residual = next++;
    if (attrs.weight) weight = next++;
    if (attrs.norm_bias) norm_bias = next++;
  }
};

}  // namespace tenon::ops
