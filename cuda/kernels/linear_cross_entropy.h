// How linear_cross_entropy cuts its rows, so that the logits of all of them never exist. A pure function
// of sizes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace tenon::cuda {

/// (rows, depth) x (classes, depth)^T.
struct LossSizes {
  std::int64_t rows = 0;
  std::int64_t depth = 0;
  std::int64_t classes = 0;
  DType dtype = DType::float32;
  bool with_gradients = false;
};

struct LossPlan {
  std::int64_t rows_of_chunk = 0;  // a multiple of 128, or all rows
  std::int64_t chunks = 0;
  std::int64_t pitch = 0;  // elements between rows of logits, which begin at 16-byte boundaries
  /// Whether the gradient of a 16-bit weight is added up over chunks in float32, to be rounded once.
  bool sums_in_float = false;
  // The workspace: a count of targets at 0, and then, at multiples of 256 bytes:
  std::size_t losses = 0;      // (rows) in the compute type
  std::size_t logits = 0;      // (rows_of_chunk, pitch)
  std::size_t weight_sum = 0;  // (classes, depth) in float32, if needed
  std::size_t bytes = 0;
};

/// Chunks as equal as possible whose logits take at most 448 MiB; rows, classes >= 1.
LossPlan plan_linear_cross_entropy(const LossSizes& sizes);

}  // namespace tenon::cuda
