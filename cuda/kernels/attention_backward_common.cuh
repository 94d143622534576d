// What the gradient's tensor core kernels share: which tile a block computes.
#pragma once

#include "cuda/kernels/attention_backward.h"
#include "cuda/kernels/attention_common.cuh"

namespace tenon::cuda {

/// The part of the problem that one block computes, with pointers to its batch.
template <class T>
struct BackwardBlock {
  std::int64_t batch;
  std::int64_t row0;  // the first query, or key, that the block owns
  const T *query, *key, *value, *grad, *output;
  T *d_query, *d_key, *d_value;
};

/// Which of `tiles` tiles in each batch is number `index`. Causal ones go by length, the longest of all
/// batches first; others batch by batch, so that neighbours read the same rows. Index is std::int64_t, or
/// std::uint32_t where all numbers fit.
template <class T, class Index>
__device__ __forceinline__ BackwardBlock<T> locate_backward_block(const AttentionBackwardParams& p,
                                                                  Index tiles, int tile_rows,
                                                                  bool longest_is_last,
                                                                  Index index) {
  const Index divisor = p.is_causal ? static_cast<Index>(p.batches) : tiles;
  const Index quotient = divide(index, divisor);
  const Index rest = index - quotient * divisor;
  const Index batch = p.is_causal ? rest : quotient;
  Index tile = p.is_causal ? quotient : rest;
  if (p.is_causal && longest_is_last) tile = tiles - 1 - tile;
  const auto start = [](const void* data) { return static_cast<T*>(const_cast<void*>(data)); };
  BackwardBlock<T> block = {static_cast<std::int64_t>(batch),
                            static_cast<std::int64_t>(tile) * tile_rows,
                            start(p.query),
                            start(p.key),
                            start(p.value),
                            start(p.grad),
                            start(p.output),
                            start(p.d_query),
                            start(p.d_key),
                            start(p.d_value)};
  // One walk over the axes for all operands: divisions are slow, and the block waits for them.
  Index outer = batch;
#pragma unroll 1
  for (int axis = p.batch_axes - 1; axis >= 0; --axis) {
    const auto size = static_cast<Index>(p.batch_sizes[axis]);
    const Index next = axis > 0 ? divide(outer, size) : 0;
    const Index position = outer - next * size;
    outer = next;
    block.query += static_cast<std::int64_t>(position) * p.query_strides.batch[axis];
    block.key += static_cast<std::int64_t>(position) * p.key_strides.batch[axis];
    block.value += static_cast<std::int64_t>(position) * p.value_strides.batch[axis];
    block.grad += static_cast<std::int64_t>(position) * p.grad_strides.batch[axis];
    block.output += static_cast<std::int64_t>(position) * p.output_strides.batch[axis];
    block.d_query += static_cast<std::int64_t>(position) * p.d_query_strides.batch[axis];
    block.d_key += static_cast<std::int64_t>(position) * p.d_key_strides.batch[axis];
    block.d_value += static_cast<std::int64_t>(position) * p.d_value_strides.batch[axis];
  }
  return block;
}

}  // namespace tenon::cuda
