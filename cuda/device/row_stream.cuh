// Rows that stream through blocks that stay. The copy of the next row into dynamic shared memory runs ahead
// of the row that is computed and holds no registers, so that few warps keep enough bytes in flight. A thread
// reads back only what it copied itself: there is no barrier.
//
//   stream_rows(p.stream, [&](const RowGroup& group, int slot) { Ring::copy(group, cols, row, slot); },
//                         [&](const RowGroup& group, int slot) { Ring::read(group, cols, slot, values); });
#pragma once

#include "cuda/device/mma.cuh"
#include "cuda/device/rows.cuh"

namespace tenon::cuda {

/// The part of a RowStreamPlan that kernels read.
struct RowStream {
  std::int64_t rows = 0;
  std::int64_t row_blocks = 0;
  std::int64_t blocks = 0;
  int lanes = 1;
  int operands = 1;  // slots of a row

  RowStream() = default;
  RowStream(std::int64_t rows_of_all, const RowStreamPlan& plan)
      : rows(rows_of_all),
        row_blocks(plan.row_blocks),
        blocks(plan.blocks),
        lanes(plan.lanes),
        operands(plan.operands) {}
};

/// What `choose` returns for the chunks of a row that threads hold, as a constant: 2 to 4, of float64 1 or 2.
template <class T, class F>
auto for_chunks(int chunks, const F& choose) {
  if constexpr (row_chunks<T> == 4) {
    if (chunks == 4) return choose.template operator()<4>();
    if (chunks == 3) return choose.template operator()<3>();
  } else {
    if (chunks == 1) return choose.template operator()<1>();
  }
  return choose.template operator()<2>();
}

/// The ring: slots of one row of one operand each, in which every thread has its own 16-byte places.
template <class T, int kChunks>
struct RowRing {
  using C = compute_type<T>;
  static constexpr int kLength = vector_length<T>;
  static constexpr int kVectors = kRowGroup / kLength;  // of a chunk

  static __device__ __forceinline__ T* place(int slot, int chunk, int vector) {
    extern __shared__ uint4 row_ring_places[];
    const int number = (slot * kChunks + chunk) * kVectors + vector;
    return reinterpret_cast<T*>(row_ring_places + number * blockDim.x + threadIdx.x);
  }

  /// Starts to copy this thread's part of the row at `source`.
  static __device__ __forceinline__ void copy(const RowGroup& group, int cols, const T* source,
                                              int slot) {
    Row<T, kChunks>::for_each_chunk(group, cols, [&](int chunk, int first) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        copy_async16(shared_address(place(slot, chunk, v)), source + first + v * kLength, true);
      }
    });
  }

  static __device__ __forceinline__ void read(int slot, int chunk, C (&values)[kRowGroup]) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const Pack<T, kLength> pack = load_pack<T, kLength>(place(slot, chunk, v));
#pragma unroll
      for (int i = 0; i < kLength; ++i) values[v * kLength + i] = widen(pack.item[i]);
    }
  }

  static __device__ __forceinline__ void write(int slot, int chunk, const C (&values)[kRowGroup]) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Pack<T, kLength> pack;
#pragma unroll
      for (int i = 0; i < kLength; ++i) pack.item[i] = convert<T>(values[v * kLength + i]);
      store_pack<T, kLength>(place(slot, chunk, v), pack);
    }
  }

  static __device__ __forceinline__ void read(const RowGroup& group, int cols, int slot,
                                              Row<T, kChunks>& row) {
    Row<T, kChunks>::for_each_chunk(group, cols,
                                    [&](int chunk, int) { read(slot, chunk, row.values[chunk]); });
  }
};

/// Goes through this block's rows: start(group, slot) starts the copies of a row's operands into `slot` and
/// those after it, and compute(group, slot) finds them there. All threads of the block must call it.
template <class Start, class Compute>
__device__ __forceinline__ void stream_rows(const RowStream& stream, Start start, Compute compute) {
  RowGroup ahead(stream.rows, stream.lanes);
  RowGroup group = ahead;
  const std::int64_t step = stream.blocks * (static_cast<int>(blockDim.x) / stream.lanes);
  std::int64_t row = block_index() * (static_cast<int>(blockDim.x) / stream.lanes) +
                     static_cast<int>(threadIdx.x) / stream.lanes;
  std::int64_t row_ahead = row;
  const auto start_next = [&](int stage) {
    ahead.move_to(row_ahead, stream.rows);
    if (ahead.active) start(ahead, stage * stream.operands);
    copy_async_commit();  // an empty group too: groups are counted
    row_ahead += step;
  };
  int stage = 0;
  start_next(stage);
  for (std::int64_t block = block_index(); block < stream.row_blocks; block += stream.blocks) {
    start_next(stage ^ 1);
    copy_async_wait<1>();
    group.move_to(row, stream.rows);
    compute(group, stage * stream.operands);
    row += step;
    stage ^= 1;
  }
}

}  // namespace tenon::cuda
