// The front of `dropout`, shared with ops that hold one: one probability check, one site sequence.
#pragma once

#include <string_view>

#include "tensor/ops/attributes.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// The attributes of a new dropout call; takes the next site unless p is 0. ValueError unless
/// 0 <= p <= 1; in a pattern p may be a wildcard.
DropoutAttrs dropout_call(std::string_view op, double p, DropoutMode mode);

/// Dropout with a given site: what a fused op's decomposition emits.
Tensor dropout_with(const Tensor& input, const DropoutAttrs& attrs);

}  // namespace tenon::ops
