// How a reduction is laid over threads: a pure function of sizes and strides, so that results do not
// depend on the GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/strides.h"
#include "tensor/kernel.h"

namespace tenon::cuda {

inline constexpr int kReduceThreads = 256;
/// Threads of a block that run across outputs, when they do and others share the outputs.
inline constexpr int kReduceColumns = 32;

struct ReducePlan {
  StridedAxes kept;     // the input's strides over the kept axes
  StridedAxes reduced;  // and over the reduced ones
  std::int64_t outputs = 0;
  std::int64_t count = 0;  // inputs of one output
  /// Neighbouring threads read neighbouring outputs (the input is contiguous along a kept axis);
  /// otherwise neighbouring inputs of one output.
  bool by_columns = false;
  int columns = 1;  // neighbouring outputs of a thread, by columns: 1, or what 16 bytes hold
  int column_threads =
      0;  // threads of a block that run across outputs, by columns; the rest share them: a power of 2
  int lanes = 1;  // threads of one output, when not by columns: 1, 2, …, 32 or the block
  std::int64_t splits = 1;  // blocks or groups that share an output; above 1 a second pass follows
  std::int64_t split_size = 0;  // inputs of each
  std::int64_t blocks = 0;
};

/// ShapeError when an output would be the extremum of nothing.
void require_elements(const KernelArgs& args);

/// Elements of the partial results of all splits; 0 without a second pass.
inline std::int64_t partial_count(const ReducePlan& plan) {
  return plan.splits > 1 ? plan.outputs * plan.splits : 0;
}

/// Plans the reduction of `input` over `axes` (non-negative; all when empty).
ReducePlan plan_reduction(const TensorView& input, const std::vector<std::int64_t>& axes);

}  // namespace tenon::cuda
