// The attribute structs of normalizations, losses and their gradients, shared by op definitions and their kernels on every device.
#pragma once

#include <cstdint>
#include <tuple>

#include "tensor/ops/plain_attributes.h"

namespace tenon {

/// layer_norm_backward and rms_norm_backward, and the ops that also add to the input's gradient: the
/// outputs are the gradients asked for, in this order.
struct NormBackwardAttrs {
  std::int64_t axes = 1;
  double eps = 1e-5;
  bool input = true;
  bool weight = true;
  bool bias = true;
  static constexpr auto fields() {
    using A = NormBackwardAttrs;
    return std::tuple{field("axes", &A::axes), field("eps", &A::eps), field("input", &A::input),
                      field("weight", &A::weight), field("bias", &A::bias)};
  }
};

/// bias_dropout_residual_layer_norm_backward: the attributes of the call that it differentiates, and the
/// gradients asked for, which are the outputs in this order.
struct ResidualNormBackwardAttrs : BiasDropoutResidualLayerNormAttrs {
  bool input = true;
  bool bias = true;
  bool residual = true;
  bool weight = true;
  bool norm_bias = true;
  static constexpr auto fields() {
    using A = ResidualNormBackwardAttrs;
    return std::tuple_cat(BiasDropoutResidualLayerNormAttrs::fields(),
                          std::tuple{field("input", &A::input), field("bias", &A::bias),
                                     field("residual", &A::residual), field("weight", &A::weight),
                                     field("norm_bias", &A::norm_bias)});
  }
};

/// cross_entropy and its gradient.
struct CrossEntropyAttrs {
  std::int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;
  double label_smoothing = 0;
  static constexpr auto fields() {
    using A = CrossEntropyAttrs;
    return std::tuple{field("ignore_index", &A::ignore_index), field("reduction", &A::reduction),
                      field("label_smoothing", &A::label_smoothing)};
  }
};

struct BatchNormAttrs {
  DropoutMode mode = DropoutMode::follow;
  double momentum = 0.1;
  double eps = 1e-5;
  static constexpr auto fields() {
    using A = BatchNormAttrs;
    return std::tuple{field("mode", &A::mode), field("momentum", &A::momentum),
                      field("eps", &A::eps)};
  }
};

/// batch_norm_backward: the outputs are the gradients asked for, in this order.
struct BatchNormBackwardAttrs {
  DropoutMode mode = DropoutMode::follow;
  bool input = true;
  bool weight = true;
  bool bias = true;
  static constexpr auto fields() {
    using A = BatchNormBackwardAttrs;
    return std::tuple{field("mode", &A::mode), field("input", &A::input),
                      field("weight", &A::weight), field("bias", &A::bias)};
  }
};

/// batch_norm_add_relu_backward: likewise, the residual's gradient last.
struct BatchNormAddBackwardAttrs : BatchNormBackwardAttrs {
  bool residual = true;
  static constexpr auto fields() {
    using A = BatchNormAddBackwardAttrs;
    return std::tuple_cat(BatchNormBackwardAttrs::fields(),
                          std::tuple{field("residual", &A::residual)});
  }
};

}  // namespace tenon
