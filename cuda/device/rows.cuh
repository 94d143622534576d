// A row held in the registers of its group of threads (kernels/row_plan.h).
//
// Columns are dealt out in one of two ways. Grouped: thread `lane` has columns 8·(lane + i·lanes) and
// the 7 after them, which is what 16-byte accesses and dropout need. Interleaved: neighbouring lanes
// have neighbouring columns, so that accesses of single elements coalesce.
#pragma once

#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/row_plan.h"

namespace tenon::cuda {

struct RowLayout {
  int cols = 0;
  int lanes = 1;
  int lane = 0;
  bool grouped = true;
  bool vectors = false;  // grouped, cols % 8 == 0 and every row at a 16-byte boundary

  __device__ __forceinline__ int column(int chunk, int i) const {
    return grouped ? (chunk * lanes + lane) * kRowGroup + i : (chunk * kRowGroup + i) * lanes + lane;
  }
};

template <class T, int kChunks>
struct Row {
  using C = compute_type<T>;
  C values[kChunks][kRowGroup];

  /// Columns beyond the row become `filler`.
  __device__ __forceinline__ void load(const RowLayout& layout, const T* source, C filler) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (layout.vectors) {
        const int column = layout.column(chunk, 0);
        if (column < layout.cols) {
          load_widened(source + column, values[chunk]);
        } else {
#pragma unroll
          for (int i = 0; i < kRowGroup; ++i) values[chunk][i] = filler;
        }
      } else {
#pragma unroll
        for (int i = 0; i < kRowGroup; ++i) {
          const int column = layout.column(chunk, i);
          values[chunk][i] = column < layout.cols ? widen(source[column]) : filler;
        }
      }
    }
  }

  __device__ __forceinline__ void store(const RowLayout& layout, T* target) const {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      store_chunk(layout, target, chunk, values[chunk]);
    }
  }

  static __device__ __forceinline__ void store_chunk(const RowLayout& layout, T* target, int chunk,
                                                     const C (&results)[kRowGroup]) {
    if (layout.vectors) {
      const int column = layout.column(chunk, 0);
      if (column < layout.cols) store_narrowed(target + column, results);
    } else {
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) {
        const int column = layout.column(chunk, i);
        if (column < layout.cols) target[column] = convert<T>(results[i]);
      }
    }
  }

  /// One chunk of another row of the same layout, such as a weight; 0 beyond its end.
  static __device__ __forceinline__ void load_chunk(const RowLayout& layout, const T* source,
                                                    int chunk, C (&results)[kRowGroup]) {
    if (layout.vectors) {
      const int column = layout.column(chunk, 0);
      if (column < layout.cols) {
        load_widened(source + column, results);
      } else {
#pragma unroll
        for (int i = 0; i < kRowGroup; ++i) results[i] = C(0);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) {
        const int column = layout.column(chunk, i);
        results[i] = column < layout.cols ? widen(source[column]) : C(0);
      }
    }
  }

  /// f(value) for each column that exists.
  template <class F>
  __device__ __forceinline__ void for_each(const RowLayout& layout, F f) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) {
        const int column = layout.column(chunk, i);
        if (column < layout.cols) f(values[chunk][i]);
      }
    }
  }
};

}  // namespace tenon::cuda
