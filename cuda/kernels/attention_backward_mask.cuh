// The gradient of an additive mask on tensor cores: dS, computed again (attention_backward_mma.cuh), summed
// over all that the mask is repeated on.
//
// The mask is cut into tiles like those of scores; along an axis on which it is repeated there is one. A
// block sums one tile: it walks over the tiles of scores that read it, of all batches, in order, and holds
// the sums in C fragments. Where there are too few tiles of the mask to fill the GPU, several blocks share
// one, and a second kernel adds up their parts: no atomics, the same bits in every run.
//
// A Tile gives T, kThreads, kRows and kKeys, the scores of a tile; 16·kRowTiles of the rows are a warp's.
#pragma once

#include "cuda/device/memory.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/kernels/attention_backward.h"
#include "cuda/kernels/attention_common.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {

/// C fragments of a warp's part of a tile: [i][j][2·h + c] is row 16·i + 8·h + g, key 8·j + 2·t + c.
template <class Tile>
using MaskSums = float[Tile::kRowTiles][Tile::kKeys / 8][4];

/// Which tile of the mask, and which part of its steps, a block sums.
struct MaskTilePart {
  std::int64_t matrix, row_owner, key_owner, chunk;
};

/// A tile of scores that is added to it; pointers are to its rows.
template <class T>
struct MaskStep {
  const T *query, *grad, *key, *value;
  std::int64_t number, batch, row0, key0;
};

__device__ __forceinline__ MaskTilePart locate_mask_tile(const MaskGradientPlan& plan,
                                                         std::int64_t block) {
  MaskTilePart part;
  std::int64_t rest = divide(block, plan.key_owners);
  part.key_owner = block - rest * plan.key_owners;
  const std::int64_t outer = divide(rest, plan.row_owners);
  part.row_owner = rest - outer * plan.row_owners;
  part.chunk = divide(outer, plan.matrices);
  part.matrix = outer - part.chunk * plan.matrices;
  return part;
}

/// Calls f(axis, position) for the batch axes, from the last one on, of batch number `shared` of those that
/// read a matrix of the mask.
template <class F>
__device__ __forceinline__ void for_each_axis(const AttentionBackwardParams& params,
                                              std::int64_t matrix, std::int64_t shared,
                                              const F& f) {
#pragma unroll 1
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    const bool repeated = params.d_mask_strides.batch[axis] == 0;
    const std::int64_t number = repeated ? shared : matrix;
    const std::int64_t quotient = divide(number, params.batch_sizes[axis]);
    (repeated ? shared : matrix) = quotient;
    f(axis, number - quotient * params.batch_sizes[axis]);
  }
}

/// Where a matrix of the mask, or of its gradient, starts.
__device__ __forceinline__ std::int64_t mask_matrix_offset(const AttentionBackwardParams& params,
                                                           const AttentionOperand& strides,
                                                           std::int64_t matrix) {
  std::int64_t offset = 0;
  for_each_axis(params, matrix, 0, [&](int axis, std::int64_t position) {
    offset += position * strides.batch[axis];
  });
  return offset;
}

template <class T>
__device__ __forceinline__ void locate_step(const AttentionBackwardParams& params,
                                            const MaskTilePart& part, std::int64_t shared,
                                            MaskStep<T>& step) {
  std::int64_t query = 0, grad = 0, key = 0, value = 0, batch = 0, batches = 1;
  for_each_axis(params, part.matrix, shared, [&](int axis, std::int64_t position) {
    query += position * params.query_strides.batch[axis];
    grad += position * params.grad_strides.batch[axis];
    key += position * params.key_strides.batch[axis];
    value += position * params.value_strides.batch[axis];
    batch += position * batches;
    batches *= params.batch_sizes[axis];
  });
  step.batch = batch;
  step.query =
      static_cast<const T*>(params.query) + query + step.row0 * params.query_strides.row;
  step.grad = static_cast<const T*>(params.grad) + grad + step.row0 * params.grad_strides.row;
  step.key = static_cast<const T*>(params.key) + key + step.key0 * params.key_strides.row;
  step.value = static_cast<const T*>(params.value) + value + step.key0 * params.value_strides.row;
}

/// The first step from `number` on, before `end`, in which a query sees a key; or one of number `end`.
template <class Tile>
__device__ __forceinline__ void find_step(const AttentionBackwardParams& params,
                                          const MaskGradientPlan& plan, const MaskTilePart& part,
                                          std::int64_t number, std::int64_t end,
                                          MaskStep<typename Tile::T>& step) {
  const std::int64_t row_steps = divide(plan.row_tiles, plan.row_owners);
  const std::int64_t key_steps = divide(plan.key_tiles, plan.key_owners);
  for (; number < end; ++number) {
    const std::int64_t rest = divide(number, key_steps);
    const std::int64_t shared = divide(rest, row_steps);
    // One of each sum is 0.
    step.key0 = (part.key_owner + number - rest * key_steps) * Tile::kKeys;
    step.row0 = (part.row_owner + rest - shared * row_steps) * Tile::kRows;
    if (params.is_causal && step.key0 >= step.row0 + Tile::kRows) continue;
    locate_step(params, part, shared, step);
    const LiveKeys live = live_keys(params, step.batch);
    if (step.key0 < live.end && step.key0 + Tile::kKeys > live.first) break;
  }
  step.number = number;
}

/// Calls copy(step), which starts copies to shared memory, and add(step) for the steps of a block, in order;
/// `step` is in shared memory.
template <class Tile, class Copy, class Add>
__device__ __forceinline__ void for_each_mask_step(const AttentionBackwardParams& params,
                                                   const MaskGradientPlan& plan,
                                                   const MaskTilePart& part,
                                                   MaskStep<typename Tile::T>& step,
                                                   const Copy& copy, const Add& add) {
  const std::int64_t first = part.chunk * plan.chunk_steps;
  const std::int64_t end = min(plan.steps, first + plan.chunk_steps);
  for (std::int64_t number = first;; number = step.number + 1) {
    __syncthreads();  // the step before this one is read no more
    if (threadIdx.x == 0) find_step<Tile>(params, plan, part, number, end, step);
    __syncthreads();
    if (step.number >= end) return;
    copy(step);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    add(step);
  }
}

/// The tile's part of the mask that a block writes, in T, or as floats for add_mask_parts_kernel.
template <class T>
struct MaskTarget {
  T* gradient;
  float* parts;  // null where the block has summed everything
  std::int64_t row_stride, key_stride;
  std::int64_t rows, keys;  // that exist

  /// The elements of two neighbouring keys, of which the second may not be asked for.
  __device__ __forceinline__ void store(std::int64_t row, std::int64_t key, float a, float b,
                                        int count) const {
    if (row >= rows || key >= keys) return;
    const std::int64_t index = row * row_stride + key * key_stride;
    const bool second = count > 1 && key + 1 < keys;
    parts != nullptr ? store_pair(parts + index, a, b, second)
                     : store_pair(gradient + index, a, b, second);
  }

  template <class To>
  __device__ __forceinline__ void store_pair(To* target, float a, float b, bool second) const {
    const bool together = second && key_stride == 1 &&
                          reinterpret_cast<std::uintptr_t>(target) % (2 * sizeof(To)) == 0;
    if (together) {
      store_pack(target, Pack<To, 2>{{convert<To>(a), convert<To>(b)}});
    } else {
      target[0] = convert<To>(a);
      if (second) target[key_stride] = convert<To>(b);
    }
  }
};

template <class Tile>
__device__ __forceinline__ MaskTarget<typename Tile::T> mask_target(
    const AttentionBackwardParams& params, const MaskGradientPlan& plan, const MaskTilePart& part,
    float* parts) {
  const AttentionOperand& strides = params.d_mask_strides;
  MaskTarget<typename Tile::T> target;
  const std::int64_t row0 = part.row_owner * Tile::kRows, key0 = part.key_owner * Tile::kKeys;
  target.rows = plan.mask_rows - row0;
  target.keys = plan.mask_keys - key0;
  target.parts = nullptr;
  target.gradient = static_cast<typename Tile::T*>(params.d_mask);
  if (plan.chunks > 1) {
    const std::int64_t matrix = part.chunk * plan.matrices + part.matrix;
    target.parts =
        parts + (matrix * plan.mask_rows + row0) * plan.mask_keys + key0;
    target.row_stride = plan.mask_keys;
    target.key_stride = 1;
  } else {
    target.gradient += mask_matrix_offset(params, strides, part.matrix) + row0 * strides.row +
                       key0 * strides.column;
    target.row_stride = strides.row;
    target.key_stride = strides.column;
  }
  return target;
}

/// Sums of each row of a tile that is repeated along the keys; of all rows where along both axes.
template <class Tile>
__device__ __forceinline__ void write_row_sums(const MaskTarget<typename Tile::T>& target,
                                               const MaskSums<Tile>& sums, float* scratch,
                                               int warp_row, int lane, bool one_row) {
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = 0;
#pragma unroll
      for (int j = 0; j < Tile::kKeys / 8; ++j) total += sums[i][j][2 * h] + sums[i][j][2 * h + 1];
      total += __shfl_xor_sync(0xffffffffU, total, 1);
      total += __shfl_xor_sync(0xffffffffU, total, 2);
      if (lane % 4 == 0) scratch[warp_row + 16 * i + 8 * h + lane / 4] = total;
    }
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row >= (one_row ? 1 : Tile::kRows)) return;
  float total = scratch[row];
  for (int r = 1; one_row && r < Tile::kRows; ++r) total += scratch[r];
  target.store(row, 0, total, 0, 1);
}

/// Sums of each key of a tile that is repeated along the queries.
template <class Tile>
__device__ __forceinline__ void write_key_sums(const MaskTarget<typename Tile::T>& target,
                                               const MaskSums<Tile>& sums, float* scratch,
                                               int warp, int lane) {
#pragma unroll
  for (int j = 0; j < Tile::kKeys / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float total = 0;
#pragma unroll
      for (int i = 0; i < Tile::kRowTiles; ++i) total += sums[i][j][c] + sums[i][j][2 + c];
      for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffU, total, step);
      if (lane < 4) scratch[warp * Tile::kKeys + 8 * j + 2 * lane + c] = total;
    }
  }
  __syncthreads();
  const int key = static_cast<int>(threadIdx.x);
  if (key >= Tile::kKeys) return;
  float total = 0;
  for (int w = 0; w < Tile::kThreads / 32; ++w) total += scratch[w * Tile::kKeys + key];
  target.store(0, key, total, 0, 1);
}

/// Writes a tile, or its part, from the sums of all warps; `scratch` is shared memory for a
/// value of each row, and of each warp's keys.
template <class Tile>
__device__ __forceinline__ void write_mask_tile(const AttentionBackwardParams& params,
                                                const MaskGradientPlan& plan,
                                                const MaskTilePart& part,
                                                const MaskSums<Tile>& sums, float* scratch,
                                                float* parts) {
  static_assert(Tile::kKeys <= Tile::kThreads && Tile::kRows <= Tile::kThreads);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp * 16 * Tile::kRowTiles;
  const auto target = mask_target<Tile>(params, plan, part, parts);
  const bool one_row = params.d_mask_strides.row == 0;
  if (params.d_mask_strides.column == 0) {
    return write_row_sums<Tile>(target, sums, scratch, warp_row, lane, one_row);
  }
  if (one_row) return write_key_sums<Tile>(target, sums, scratch, warp, lane);
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < Tile::kKeys / 8; ++j) {
        target.store(warp_row + 16 * i + 8 * h + lane / 4, 8 * j + 2 * (lane % 4),
                     sums[i][j][2 * h], sums[i][j][2 * h + 1], 2);
      }
    }
  }
}

inline constexpr int kAddThreads = 256;

/// Adds up the parts of each element, (chunks, matrices, mask_rows, mask_keys).
template <class T>
__global__ __launch_bounds__(kAddThreads) void add_mask_parts_kernel(
    const __grid_constant__ AttentionBackwardParams params, const MaskGradientPlan plan,
    const float* parts) {
  const std::int64_t elements = plan.matrices * plan.mask_rows * plan.mask_keys;
  const std::int64_t index = block_index() * kAddThreads + threadIdx.x;
  if (index >= elements) return;
  float total = parts[index];
  for (std::int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
    total += parts[chunk * elements + index];
  }
  const std::int64_t rest = divide(index, plan.mask_keys), matrix = divide(rest, plan.mask_rows);
  const AttentionOperand& strides = params.d_mask_strides;
  static_cast<T*>(params.d_mask)[mask_matrix_offset(params, strides, matrix) +
                                 (rest - matrix * plan.mask_rows) * strides.row +
                                 (index - rest * plan.mask_keys) * strides.column] =
      convert<T>(total);
}

/// Both launches, where `kernel` is that for a Tile.
template <class Tile>
void launch_mask_kernels(
    void (*kernel)(const AttentionBackwardParams, const MaskGradientPlan, float*),
    const AttentionBackwardParams& params, const MaskGradientPlan& plan, int shared_bytes,
    float* parts, Stream stream) {
  launch(stream, "attention_backward_mask", kernel,
         plan.chunks * plan.matrices * plan.row_owners * plan.key_owners, Tile::kThreads,
         static_cast<std::size_t>(shared_bytes), params, plan, parts);
  if (plan.chunks == 1) return;
  const std::int64_t elements = plan.matrices * plan.mask_rows * plan.mask_keys;
  launch(stream, "attention_backward_mask_parts", add_mask_parts_kernel<typename Tile::T>,
         ceil_div(elements, kAddThreads), kAddThreads, 0, params, plan,
         static_cast<const float*>(parts));
}

}  // namespace tenon::cuda
