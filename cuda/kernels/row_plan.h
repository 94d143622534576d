// How kernels that need a whole row at once (softmax, layer_norm) lay rows over threads. A group of
// lanes owns a row and holds it in registers, kRowGroup neighbouring columns at a time (device/rows.cuh);
// rows that do not fit are read again in each pass. A pure function of sizes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tenon::cuda {

inline constexpr int kRowGroup = 8;  // columns: what one Philox call serves
inline constexpr int kMaxRowThreads = 512;

/// Groups of columns that a thread holds at most: 32 values in the compute type, 16 of float64.
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

/// Rows that a block's ring holds for each of its groups. Blocks beside one another hide more latency than
/// more rows would: on an H200 3 and 4 were 1 to 10% slower, each at its best.
inline constexpr int kRowStreamStages = 2;

/// Rows that stream through blocks that stay (device/row_stream.cuh): a block goes through rows that are
/// `blocks` apart, and copies into shared memory run kRowStreamStages - 1 of them ahead.
struct RowStreamPlan {
  int lanes = 1;                 // threads of a row: 1, 2, …, 32, or the whole block
  int threads = 0;               // of a block
  int chunks = 0;                // groups of columns that a thread holds
  int operands = 1;              // RowStreamNeeds
  std::int64_t row_blocks = 0;   // rows over the rows that a block holds at a time
  std::int64_t blocks = 0;       // fixed by sizes, so that sums do not depend on the GPU
  std::size_t shared_bytes = 0;  // of a block's ring
  bool fits = false;             // else rows are too long for registers or shared memory
};

struct RowStreamNeeds {
  int element_bytes = 4;
  int operands = 1;  // rows that are copied
  int values = 1;    // in the compute type, that a thread holds of each of its columns
};

inline constexpr int kStreamThreads = 128;  // of a block whose warps have rows of their own

/// Threads for the 65536 registers of a multiprocessor: each holds its values and some 40 other words, and
/// with few values the copies that are under way, not the threads, hide latency.
constexpr int threads_for_registers(const RowStreamNeeds& needs, int chunks) {
  const int held = chunks * kRowGroup * needs.values * (needs.element_bytes == 8 ? 2 : 1);
  return 65536 / (held < 32 ? 72 : held + 40);
}
/// The largest block of a kernel, and how many of those a multiprocessor should hold.
constexpr int largest_stream_block(const RowStreamNeeds& needs, int chunks) {
  return threads_for_registers(needs, chunks) >= kMaxRowThreads ? kMaxRowThreads : kStreamThreads;
}
constexpr int resident_stream_blocks(const RowStreamNeeds& needs, int chunks) {
  const int blocks = threads_for_registers(needs, chunks) / largest_stream_block(needs, chunks);
  return blocks > 1 ? blocks : 1;
}

/// rows, cols >= 1.
RowStreamPlan plan_row_stream(std::int64_t rows, std::int64_t cols, const RowStreamNeeds& needs);

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
