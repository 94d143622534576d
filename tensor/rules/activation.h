// Activations that a product can end in, as linear_gelu has GELU: one table for the ops that do so.
#pragma once

#include "tensor/functional.h"
#include "tensor/rules/gradients.h"

namespace tenon::ops {

/// An activation and its gradient from what a product keeps for it: its input, or where
/// `from_output` its result.
struct Activation {
  Tensor (*value)(const Tensor& x, const Attrs& attrs);
  Tensor (*gradient)(const Tensor& grad, const Tensor& kept, const Attrs& attrs);
  bool from_output;
};

inline constexpr Activation kGelu = {
    [](const Tensor& x, const Attrs& attrs) { return gelu(x, attrs.as<GeluAttrs>().approximate); },
    [](const Tensor& grad, const Tensor& input, const Attrs& attrs) {
      return gelu_backward(grad, input, attrs.as<GeluAttrs>().approximate);
    },
    false};
inline constexpr Activation kRelu = {[](const Tensor& x, const Attrs&) { return relu(x); },
                                     [](const Tensor& grad, const Tensor& output, const Attrs&) {
                                       return relu_backward(grad, output);
                                     },
                                     true};
inline constexpr Activation kSilu = {[](const Tensor& x, const Attrs&) { return silu(x); },
                                     [](const Tensor& grad, const Tensor& input, const Attrs&) {
                                       return silu_backward(grad, input);
                                     },
                                     false};

}  // namespace tenon::ops
