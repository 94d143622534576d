// How kernels that need a whole row at once (softmax, layer_norm) lay rows over threads. A group of
// lanes owns a row and holds it in registers, kRowGroup neighbouring columns at a time (device/rows.cuh);
// rows that do not fit are read again in each pass. A pure function of sizes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tenon::cuda {

inline constexpr int kRowGroup = 8;  // columns: what one Philox call serves
inline constexpr int kMaxRowThreads = 512;

/// Groups of columns that a thread holds: 32 values in the compute type, 16 of float64.
template <class T>
inline constexpr int row_chunks = sizeof(T) == 8 ? 2 : 4;

struct RowPlan {
  int lanes = 1;      // threads of a row: 1, 2, …, 32, or the whole block
  int threads = 128;  // of a block
  std::int64_t blocks = 0;
  bool fits = false;  // lanes · chunks · kRowGroup >= cols
};

/// `chunks` is row_chunks of the dtype; rows, cols >= 1.
RowPlan plan_rows(std::int64_t rows, std::int64_t cols, int chunks);

/// Sums over the rows of a matrix, for every column: blocks of kColumnsOfBlock columns times `splits`
/// runs of rows, whose partial sums a second launch adds in order.
struct ColumnSumPlan {
  std::int64_t splits = 1;
  std::int64_t rows_of_split = 0;
  std::int64_t blocks = 0;  // of the first launch
};
inline constexpr int kColumnsOfBlock = 32;
inline constexpr int kRowLanes = 8;  // threads of a column in a block

/// rows, cols >= 1.
ColumnSumPlan plan_column_sums(std::int64_t rows, std::int64_t cols);

}  // namespace tenon::cuda
