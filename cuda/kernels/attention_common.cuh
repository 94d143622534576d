// What the attention kernels share: which tile a block computes, and the mask.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/device/convert.cuh"
#include "cuda/kernels/attention_launch.h"

namespace tenon::cuda {

/// The part of the problem that one block computes, with pointers to its batch.
template <class T>
struct AttentionBlock {
  std::int64_t batch;      // row-major index over the batch axes
  std::int64_t row_block;  // which tile of query rows
  const T* query;
  const T* key;
  const T* value;
  const char* mask;  // bool or T, by mask_kind
  T* output;
  std::uint32_t forward;  // of the dropout key, read from memory once
};

static_assert(sizeof(AttentionBlock<float>) <= kAttentionBlockBytes);

__device__ __forceinline__ std::int64_t divide(std::int64_t a, std::int64_t b) {
  // 64-bit division is several times slower, and almost never needed.
  if (((a | b) >> 32) == 0) return static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b);
  return a / b;
}

__device__ __forceinline__ std::uint32_t divide(std::uint32_t a, std::uint32_t b) { return a / b; }

/// Where the elements of `batch` start in an operand.
__device__ __forceinline__ std::int64_t batch_offset(const AttentionParams& params,
                                                     const AttentionOperand& operand,
                                                     std::int64_t batch) {
  std::int64_t offset = 0;
#pragma unroll 1
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    const std::int64_t rest = divide(batch, params.batch_sizes[axis]);
    offset += (batch - rest * params.batch_sizes[axis]) * operand.batch[axis];
    batch = rest;
  }
  return offset;
}

/// Finds batch and row tile of a block. Causal blocks start with the longest rows. An element of
/// the operands takes `width` of T: 1, or as many bytes as it has where T is char.
template <class T>
__device__ __forceinline__ AttentionBlock<T> locate_block(const AttentionParams& params,
                                                          std::int64_t block,
                                                          std::int64_t width = 1) {
  AttentionBlock<T> result;
  const std::int64_t batch = divide(block, params.row_blocks);
  result.row_block = block - batch * params.row_blocks;
  if (params.is_causal) result.row_block = params.row_blocks - 1 - result.row_block;
  result.batch = batch;

  std::int64_t query = 0, key = 0, value = 0, mask = 0, output = 0;
  std::int64_t rest = result.batch;
#pragma unroll 1
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    const std::int64_t quotient = divide(rest, params.batch_sizes[axis]);
    const std::int64_t index = rest - quotient * params.batch_sizes[axis];
    rest = quotient;
    query += index * params.query_strides.batch[axis];
    key += index * params.key_strides.batch[axis];
    value += index * params.value_strides.batch[axis];
    mask += index * params.mask_strides.batch[axis];
    output += index * params.output_strides.batch[axis];
  }
  result.query = static_cast<const T*>(params.query) + query * width;
  result.key = static_cast<const T*>(params.key) + key * width;
  result.value = static_cast<const T*>(params.value) + value * width;
  const std::int64_t mask_element = params.mask_kind == AttentionMask::additive
                                        ? static_cast<std::int64_t>(sizeof(T)) * width
                                        : 1;
  result.mask = static_cast<const char*>(params.mask) + mask * mask_element;
  result.output = static_cast<T*>(params.output) + output * width;
  result.forward = params.has_dropout ? forward_of(params.dropout_key) : 0;
  return result;
}

/// The dropout key with the forward number that its block has read.
__device__ __forceinline__ DropoutKey with_forward(const DropoutKey& key, std::uint32_t forward) {
  return {key.seed, forward, key.site};
}

constexpr double kLn2 = 0.6931471805599453;

/// Keys that a tile of query rows ending before `row_end` can see.
__device__ __forceinline__ std::int64_t visible_keys(const AttentionParams& params,
                                                     std::int64_t row_end) {
  return params.is_causal && row_end < params.keys ? row_end : params.keys;
}

/// The keys that a batch's mask leaves, all of them where it is not known; on [first, plain_end) it
/// changes nothing.
struct LiveKeys {
  std::int64_t first, end, plain_end;
};
__device__ __forceinline__ LiveKeys live_keys(const AttentionParams& params, std::int64_t batch) {
  if (params.live_keys == nullptr) return {0, params.keys, 0};
  const auto live = *reinterpret_cast<const int4*>(params.live_keys + 4 * batch);
  return {live.x, live.y, live.z};
}

/// A masked query's lse as the gradient's kernels subtract it, in units of log2. Probabilities are 0 where the query
/// sees no key, or none but such as finite values hide: so far below 0, lse has lost how many there are.
template <class C>
__device__ __forceinline__ C lse_of_masked(C lse) {
  constexpr C kLeast = sizeof(C) == 4 ? C(-0x1p17) : C(-0x1p46);
  return lse < kLeast ? static_cast<C>(INFINITY) : lse;
}

/// How many of the `present` keys from `key0` on the query `row` sees.
__device__ __forceinline__ int seen_keys(const AttentionParams& params, std::int64_t row,
                                         std::int64_t key0, int present) {
  if (!params.is_causal || row - key0 >= present) return present;
  return row < key0 ? 0 : static_cast<int>(row - key0) + 1;
}

/// What the sums of a row are multiplied by in the end, from that of its exponentials. A query that the
/// mask shows no key gets zeros; without a mask a sum of 0 means scores that overflowed, and gives NaN.
template <class C>
__device__ __forceinline__ C row_factor(const AttentionParams& params, C sum) {
  if (params.mask_kind != AttentionMask::none && sum == C(0)) return C(0);
  return static_cast<C>(params.keep_scale) / sum;
}

/// What an additive mask adds in units of log2. A finite value stays finite: a query that sees nothing but
/// lowest values weighs their keys equally.
template <class C>
__device__ __forceinline__ C mask_in_log2(C value) {
  constexpr C kLog2E = static_cast<C>(1.4426950408889634074);
  const C result = value * kLog2E;
  const bool overflows = result == -static_cast<C>(INFINITY) && value != result;
  return overflows ? std::numeric_limits<C>::lowest() : result;
}

/// A masked score: `score` is in units of log2; the mask's (row, column) must exist.
template <class T, class C>
__device__ __forceinline__ C apply_mask(const AttentionParams& params, const char* mask,
                                        std::int64_t row, std::int64_t column, C score) {
  const std::int64_t index = row * params.mask_strides.row + column * params.mask_strides.column;
  if (params.mask_kind == AttentionMask::boolean) {
    return mask[index] != 0 ? score : -static_cast<C>(INFINITY);
  }
  return score + mask_in_log2(static_cast<C>(widen(reinterpret_cast<const T*>(mask)[index])));
}

}  // namespace tenon::cuda
