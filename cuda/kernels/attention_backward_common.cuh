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
  const auto at = [&](const void* data, const AttentionOperand& strides) {
    return static_cast<T*>(const_cast<void*>(data)) + batch_offset(p, strides, batch);
  };
  return {batch,
          tile * tile_rows,
          at(p.query, p.query_strides),
          at(p.key, p.key_strides),
          at(p.value, p.value_strides),
          at(p.grad, p.grad_strides),
          at(p.output, p.output_strides),
          at(p.d_query, p.d_query_strides),
          at(p.d_key, p.d_key_strides),
          at(p.d_value, p.d_value_strides)};
}

}  // namespace tenon::cuda
