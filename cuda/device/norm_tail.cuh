// What bias_dropout_residual_layer_norm does to a row before it is normalized: dropout(input + bias) +
// residual, for rows in registers and element by element.
#pragma once

#include "cuda/device/any_float.cuh"
#include "cuda/device/row_stream.cuh"
#include "cuda/kernels/dropout.h"

namespace tenon::cuda {

struct TailParams {
  const void* bias = nullptr;  // (cols)
  const void* residual = nullptr;
  DropoutParams dropout;
};

/// dropout(x + bias) + residual, in place, for the columns of a row that this thread holds; the residual is
/// in `slot`. Returns which it kept, 8 bits for each chunk.
template <class T, int kChunks>
__device__ __forceinline__ std::uint32_t add_tail(const TailParams& tail, const RowGroup& group,
                                                  int cols, int slot, Row<T, kChunks>& row) {
  static_assert(kChunks * kRowGroup <= 32);
  using C = compute_type<T>;
  const C scale = static_cast<C>(tail.dropout.scale);
  std::uint32_t kept = 0;
  Row<T, kChunks>::for_each_chunk(group, cols, [&](int chunk, int first) {
    C bias[kRowGroup];
    C residual[kRowGroup];
    load_widened(static_cast<const T*>(tail.bias) + first, bias);
    RowRing<T, kChunks>::read(slot, chunk, residual);
    const std::uint32_t keep = kept_bits(tail.dropout, group.row, first / kRowGroup);
    kept |= keep << (kRowGroup * chunk);
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      C& x = row.values[chunk][i];
      x = ((keep >> i & 1U) != 0 ? (x + bias[i]) * scale : C(0)) + residual[i];
    }
  });
  return kept;
}

/// Whether one element is kept.
__device__ __forceinline__ bool is_kept(const DropoutParams& dropout, std::int64_t row,
                                        std::int64_t column) {
  return (kept_bits(dropout, row, column / kRowGroup) >> column % kRowGroup & 1U) != 0;
}

/// The value that is normalized, for rows that are read again in each pass. No bias: no tail.
template <class C>
__device__ __forceinline__ C value_at(DType dtype, const void* input, const TailParams& tail,
                                      std::int64_t row, std::int64_t column, std::int64_t cols) {
  C value = load_as<C>(dtype, input, row * cols + column);
  if (tail.bias != nullptr) {
    value += load_as<C>(dtype, tail.bias, column);
    value = is_kept(tail.dropout, row, column) ? value * static_cast<C>(tail.dropout.scale) : C(0);
    value += load_as<C>(dtype, tail.residual, row * cols + column);
  }
  return value;
}

}  // namespace tenon::cuda
