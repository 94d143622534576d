// How an elementwise call (device/pointwise.cuh) is laid over blocks: a function of its operands.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/strides.h"

namespace tenon::cuda {

/// Of a compiled kernel.
struct PointwiseShape {
  int length = 1;     // elements of a vector
  int per_block = 1;  // elements of a block
};

struct PointwisePlan {
  StridedAxes axes;                // of the output and the inputs
  std::int64_t first_single = 0;   // the first element that no vector covers
  std::int64_t vector_blocks = 0;  // these compute vectors, the blocks after them single elements
  std::int64_t blocks = 0;
};

/// `views`: the output, then the inputs, which broadcast to it; absent ones have no data.
PointwisePlan plan_pointwise(std::span<const TensorView> views, const PointwiseShape& shape);

}  // namespace tenon::cuda
