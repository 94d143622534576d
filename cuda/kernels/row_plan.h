// How kernels that need a whole row at once (softmax, layer_norm) lay rows over threads. A group of
// lanes owns a row and holds it in registers, kRowGroup neighbouring columns at a time (device/rows.cuh);
// rows that do not fit are read again in each pass. Pure functions of sizes and of a GPU's limits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device_limits.h"

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

constexpr RowStreamNeeds softmax_needs(int element_bytes) { return {element_bytes, 1, 1}; }
/// The gradient and the forward's result.
constexpr RowStreamNeeds softmax_backward_needs(int element_bytes) { return {element_bytes, 2, 2}; }
/// The input and, of a norm that is fused with what stands before it, the residual.
constexpr RowStreamNeeds norm_needs(int element_bytes, bool fused) {
  return {element_bytes, fused ? 2 : 1, 1};
}
/// Two or three operands; held are a row, its gradient and the sums of columns.
constexpr RowStreamNeeds norm_backward_needs(int element_bytes, int operands, bool fused) {
  return {element_bytes, operands, 2 + (fused ? 3 : 2)};
}

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

/// Bytes of a block's shared memory beside its ring: what reductions take, and the system.
constexpr int row_stream_other_bytes(int element_bytes) {
  return element_bytes == 8 ? 10 << 10 : 6 << 10;
}

/// rows, cols >= 1. `limits` say whether the plan fits, and nothing else.
RowStreamPlan plan_row_stream(std::int64_t rows, std::int64_t cols, const RowStreamNeeds& needs,
                              const DeviceLimits& limits);

/// Rows of logits (kernels/cross_entropy.cu), of which nothing is summed across blocks.
struct LossRowsPlan {
  int lanes = 1;
  int threads = 0;
  std::int64_t row_blocks = 0;  // rows over the rows that a block has at a time
  std::int64_t blocks = 0;
  std::int64_t held_pitch = 0;   // elements between rows in shared memory
  std::size_t shared_bytes = 0;  // 0 where rows are read from global memory
  bool held = false;
};

inline constexpr int kWideResidentThreads = 512;  // of a multiprocessor, for float64
inline constexpr int kResidentThreads = 1024;     // of 64 registers each, for what is narrower

/// rows >= 1, classes >= 0.
LossRowsPlan plan_loss_rows(std::int64_t rows, std::int64_t classes, int element_bytes,
                            const DeviceLimits& limits);

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
