// Functions of one tensor that random models call, each with another way to compute the same: what a
// schedule may put in its place.
#pragma once

#include <vector>

#include "tensor/tensor.h"

namespace tenon::fuzz {

using TensorFunction = Tensor (*)(const Tensor&);

/// (batch, seq, hidden) -> the same shape.
struct FunctionEntry {
  const char* name;
  TensorFunction function;
  TensorFunction equal;  // null: nothing to replace it by
  bool kinked = false;   // not differentiable everywhere
};

const std::vector<FunctionEntry>& pointwise_table();
const std::vector<FunctionEntry>& shape_table();

}  // namespace tenon::fuzz
