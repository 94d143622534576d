// The attribute structs of normalizations, losses, convolution and pooling, and of their gradients;
// shared by op definitions and their kernels on every device.
#pragma once

#include <cstdint>
#include <tuple>

#include "tensor/attrs.h"
#include "tensor/functional.h"

namespace tenon {

/// layer_norm_backward and rms_norm_backward: the outputs are the gradients asked for, in this order.
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

}  // namespace tenon
