// Batches of a broadcast product, for naive references.
#pragma once

#include <cstdint>

#include "tensor/tensor_view.h"

namespace tenon::test {

/// The matrix of an operand of `sizes` (…, M, N) that batch `index` of the result's leading axes
/// `batch` reads.
inline std::int64_t broadcast_index(std::int64_t index, const Extents& batch,
                                    const Extents& sizes) {
  std::int64_t result = 0;
  std::int64_t stride = 1;
  for (int axis = 1; axis <= batch.size(); ++axis) {
    const std::int64_t position = index % batch[batch.size() - axis];
    index /= batch[batch.size() - axis];
    if (axis > sizes.size() - 2) continue;
    const std::int64_t size = sizes[sizes.size() - 2 - axis];
    if (size != 1) result += position * stride;
    stride *= size;
  }
  return result;
}

}  // namespace tenon::test
