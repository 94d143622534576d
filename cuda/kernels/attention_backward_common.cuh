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

/// How many batches have tiles of their own: those that share keys have one set of keys between them.
inline __host__ __device__ std::int64_t tiled_batches(const AttentionParams& p, bool of_keys) {
  return of_keys ? p.key_batches : p.batches;
}

/// Which of `tiles` tiles of queries, or of keys, in each batch is number `index`. Causal ones go by length,
/// the longest of all batches first; others batch by batch, so that neighbours read the same rows. Of the
/// batches that share a tile of keys, the block is that of number `member`. Index is std::int64_t, or
/// std::uint32_t where all numbers fit.
template <class T, class Index>
__device__ __forceinline__ BackwardBlock<T> locate_backward_block(const AttentionBackwardParams& p,
                                                                  Index tiles, int tile_rows,
                                                                  bool of_keys, Index index,
                                                                  Index member = 0) {
  const auto batches = static_cast<Index>(tiled_batches(p, of_keys));
  const Index divisor = p.is_causal ? batches : tiles;
  const Index quotient = divide(index, divisor);
  const Index rest = index - quotient * divisor;
  Index batch = p.is_causal ? rest : quotient;
  if (of_keys) batch = batch * static_cast<Index>(p.group) + member;
  Index tile = p.is_causal ? quotient : rest;
  if (p.is_causal && !of_keys) tile = tiles - 1 - tile;  // the last queries see most
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
