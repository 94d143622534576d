// The second half of a reduction over rows: parts (count, columns), one row from each block of the first
// half, combined for each column. Every thread has few dependent steps, and the order is fixed.
#pragma once

#include <cstdint>

#include "cuda/device/reduce.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {

inline constexpr int kTotalsThreads = kWarp * kWarp;  // 32 columns a block, 32 threads a column

/// finish(column, total) stores a total; `identity` is op's.
template <class Op, class C, class Finish>
__global__ void __launch_bounds__(kTotalsThreads)
    column_totals_kernel(const C* parts, std::int64_t count, std::int64_t columns, C identity,
                         const Finish finish) {
  __shared__ C partial[kWarp][kWarp + 1];
  const Op op{};
  const int x = static_cast<int>(threadIdx.x) % kWarp;
  const int y = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t first = block_index() * kWarp;
  C total = identity;
  if (first + x < columns) {
#pragma unroll 8
    for (std::int64_t i = y; i < count; i += kWarp)
      total = op(total, parts[i * columns + first + x]);
  }
  partial[y][x] = total;
  __syncthreads();
  total = warp_reduce(partial[x][y], kWarp, op);  // warp y has column y
  if (x == 0 && first + y < columns) finish(first + y, total);
}

template <class Op, class C, class Finish>
void launch_column_totals(Stream stream, const char* name, const void* parts, std::int64_t count,
                          std::int64_t columns, C identity, const Finish& finish) {
  launch(stream, name, column_totals_kernel<Op, C, Finish>, ceil_div(columns, kWarp),
         kTotalsThreads, 0, static_cast<const C*>(parts), count, columns, identity, finish);
}

}  // namespace tenon::cuda
