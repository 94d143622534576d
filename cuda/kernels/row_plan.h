// How kernels that need a whole row at once (softmax, layer_norm) lay rows over threads. A group of
// lanes owns a row and holds it in registers, kRowGroup neighbouring columns at a time (device/rows.cuh);
// rows that do not fit are read again in each pass. A pure function of sizes.
#pragma once

#include <algorithm>
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

/// Gradients of normalizations: blocks stay, go through rows that are `blocks` apart, and keep their part of
/// the sums over rows in registers; each writes it once, and a second launch adds the parts.
struct NormBackwardPlan {
  int lanes = 1;                // threads of a row: 1, 2, …, 32, or the whole block
  int threads = 0;              // of a block
  int chunks = 0;               // groups of columns that a thread holds
  std::int64_t row_blocks = 0;  // rows over the rows that a block holds at a time
  std::int64_t blocks = 0;      // fixed by sizes, so that sums do not depend on the GPU
  bool fits = false;            // lanes · chunks · kRowGroup >= cols
};

inline constexpr int kNormWarpThreads = 128;  // of a block whose warps have rows of their own
/// Groups of columns of a thread: in blocks of any size, and at most where a row is a warp's.
template <class T>
inline constexpr int norm_chunks = sizeof(T) == 8 ? 1 : 2;
template <class T>
inline constexpr int max_norm_chunks = sizeof(T) == 8 ? 1 : 4;

/// Blocks for the 65536 registers of a multiprocessor: a thread holds a row, its gradient and `sums` sums
/// in values of `value_bytes` bytes, and some 40 other words.
constexpr int resident_norm_blocks(int chunks, int sums, int value_bytes, int threads) {
  const int words = chunks * kRowGroup * (2 + sums) * value_bytes / 4 + 40;
  return std::max(1, 65536 / (words * threads));
}

/// `sums` columns sums are kept, `value_bytes` is 8 for float64, else 4; rows, cols >= 1.
NormBackwardPlan plan_norm_backward(std::int64_t rows, std::int64_t cols, int sums,
                                    int value_bytes);

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
