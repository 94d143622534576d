// Copies between tensors of one dtype.
#pragma once

#include "cuda/launch.h"
#include "tensor/tensor_view.h"

namespace tenon::cuda {

/// target = source, element by element in row-major order of the target's sizes, to which the source
/// broadcasts; one dtype, any strides on both sides, the two not overlapping. `name` appears in errors.
void copy_strided(Stream stream, const char* name, const TensorView& source,
                  const TensorView& target);

}  // namespace tenon::cuda
