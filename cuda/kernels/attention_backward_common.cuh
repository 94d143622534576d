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

/// Which tile of `tiles` a block computes. Causal blocks go by length, the longest of all batches
/// first; others batch by batch, so that neighbours read the same rows.
template <class T>
__device__ BackwardBlock<T> locate_backward_block(const AttentionBackwardParams& p,
                                                  std::int64_t tiles, int tile_rows,
                                                  bool longest_is_last) {
  const std::int64_t divisor = p.is_causal ? p.batches : tiles;
  const std::int64_t quotient = divide(block_index(), divisor);
  const std::int64_t rest = block_index() - quotient * divisor;
  const std::int64_t batch = p.is_causal ? rest : quotient;
  std::int64_t tile = p.is_causal ? quotient : rest;
  if (p.is_causal && longest_is_last) tile = tiles - 1 - tile;
  const auto start = [](const void* data) { return static_cast<T*>(const_cast<void*>(data)); };
  BackwardBlock<T> block = {batch,          tile * tile_rows, start(p.query),  start(p.key),
                            start(p.value), start(p.grad),    start(p.output), start(p.d_query),
                            start(p.d_key), start(p.d_value)};
  // One walk over the axes for all operands: divisions are slow, and the block waits for them.
  std::int64_t outer = batch;
  for (int axis = p.batch_axes - 1; axis >= 0; --axis) {
    const std::int64_t next = axis > 0 ? divide(outer, p.batch_sizes[axis]) : 0;
    const std::int64_t index = outer - next * p.batch_sizes[axis];
    outer = next;
    block.query += index * p.query_strides.batch[axis];
    block.key += index * p.key_strides.batch[axis];
    block.value += index * p.value_strides.batch[axis];
    block.grad += index * p.grad_strides.batch[axis];
    block.output += index * p.output_strides.batch[axis];
    block.d_query += index * p.d_query_strides.batch[axis];
    block.d_key += index * p.d_key_strides.batch[axis];
    block.d_value += index * p.d_value_strides.batch[axis];
  }
  return block;
}

}  // namespace tenon::cuda
