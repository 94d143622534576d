// A row held in the registers of its group of threads (kernels/row_plan.h): thread `lane` of `lanes`
// has columns 8·(lane + i·lanes) and the 7 after them, which is what 16-byte accesses and dropout
// need. For rows of a multiple of 8 columns that start at 16-byte boundaries; kernels read others
// element by element, once in each pass.
#pragma once

#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/row_plan.h"
#include "cuda/launch.h"

namespace tenon::cuda {

/// The rows of one block, and this thread's place in its own.
struct RowGroup {
  std::int64_t row = 0;  // 0 where inactive: all lanes of a warp must stay for the reductions
  bool active = false;
  int lane = 0;
  int lanes = 1;

  __device__ __forceinline__ RowGroup(std::int64_t rows, int lanes_of_row) : lanes(lanes_of_row) {
    const int thread = static_cast<int>(threadIdx.x);
    lane = thread % lanes;
    move_to(block_index() * (static_cast<int>(blockDim.x) / lanes) + thread / lanes, rows);
  }

  __device__ __forceinline__ void move_to(std::int64_t number, std::int64_t rows) {
    active = number < rows;
    row = active ? number : 0;
  }
};

template <class T, int kChunks>
struct Row {
  using C = compute_type<T>;
  C values[kChunks][kRowGroup];

  static __device__ __forceinline__ int column(const RowGroup& group, int chunk) {
    return (chunk * group.lanes + group.lane) * kRowGroup;
  }

  /// f(chunk, first column) for each chunk that lies within the row: in a RowStreamPlan only the last may not.
  template <class F>
  static __device__ __forceinline__ void for_each_chunk(const RowGroup& group, int cols, F f) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int first = column(group, chunk);
      if (chunk + 1 < kChunks || first < cols) f(chunk, first);
    }
  }

  __device__ __forceinline__ void store(const RowGroup& group, int cols, T* target) const {
    for_each_chunk(group, cols,
                   [&](int chunk, int first) { store_narrowed(target + first, values[chunk]); });
  }

  /// f(value) for each value of the row that this thread holds.
  template <class F>
  __device__ __forceinline__ void for_each(const RowGroup& group, int cols, F f) {
    for_each_chunk(group, cols, [&](int chunk, int) {
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) f(values[chunk][i]);
    });
  }
};

}  // namespace tenon::cuda
