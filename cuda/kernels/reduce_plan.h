// How a reduction is laid over threads: a pure function of sizes and strides, so that results do not
// depend on the GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/strides.h"
#include "tensor/op.h"

namespace tenon::cuda {

inline constexpr int kReduceThreads = 256;
/// Outputs of a block when threads run across outputs.
inline constexpr int kReduceColumns = 32;

struct ReducePlan {
  StridedAxes kept;     // the input's strides over the kept axes
  StridedAxes reduced;  // and over the reduced ones
  std::int64_t outputs = 0;
  std::int64_t count = 0;  // inputs of one output
  /// Neighbouring threads read neighbouring outputs (the input is contiguous along a kept axis);
  /// otherwise neighbouring inputs of one output.
  bool by_columns = false;
  int lanes = 1;  // threads of one output, when not by columns: 1, 2, …, 32 or the block
  std::int64_t splits = 1;  // blocks or groups that share an output; above 1 a second pass follows
  std::int64_t split_size = 0;  // inputs of each
  std::int64_t blocks = 0;
};

/// ShapeError when an output would be the extremum of nothing.
void require_elements(const KernelArgs& args);

/// Plans the reduction of `input` over `axes` (non-negative; all when empty).
ReducePlan plan_reduction(const TensorView& input, const std::vector<std::int64_t>& axes);

}  // namespace tenon::cuda
