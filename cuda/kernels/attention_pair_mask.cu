// Masks of (queries, keys) in one form: additive, of the operands' dtype, rows dense and aligned to 16
// bytes. Memory's rate: 2 bytes a pair are written, for each of the mask's own batches.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/attention_common.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;

/// Vector number `index` of the target; its rows are those of all the mask's batches, one after another.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pair_mask_kernel(const __grid_constant__ AttentionParams params, T* target,
                     std::int64_t vectors, int vectors_of_row) {
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index >= vectors) return;
  const std::int64_t row = divide(index, vectors_of_row);
  const std::int64_t key0 = (index - row * vectors_of_row) * kVector;
  std::int64_t rest = divide(row, params.length);
  std::int64_t offset = (row - rest * params.length) * params.mask_strides.row;
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    if (params.mask_strides.batch[axis] == 0) continue;
    const std::int64_t next = divide(rest, params.batch_sizes[axis]);
    offset += (rest - next * params.batch_sizes[axis]) * params.mask_strides.batch[axis];
    rest = next;
  }
  Pack<T, kVector> values;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const std::int64_t at = offset + (key0 + i) * params.mask_strides.column;
    const bool exists = key0 + i < params.keys;
    if (params.mask_kind == AttentionMask::boolean) {
      const bool is_shown = exists && static_cast<const bool*>(params.mask)[at];
      values.item[i] = convert<T>(is_shown ? 0.0F : -INFINITY);
    } else {
      values.item[i] = exists ? static_cast<const T*>(params.mask)[at] : convert<T>(-INFINITY);
    }
  }
  reinterpret_cast<Pack<T, kVector>*>(target)[index] = values;
}

}  // namespace

std::size_t pair_mask_bytes(const AttentionParams& params) {
  std::int64_t masks = 1;
  for (int axis = 0; axis < params.batch_axes; ++axis) {
    if (params.mask_strides.batch[axis] != 0) masks *= params.batch_sizes[axis];
  }
  const std::int64_t row = ceil_div(params.keys, kVector) * kVector;
  return static_cast<std::size_t>(masks * params.length * row) * sizeof(Half);
}

void launch_pair_mask(AttentionParams& params, DType dtype, void* workspace, Stream stream) {
  const std::int64_t vectors_of_row = ceil_div(params.keys, kVector);
  const auto vectors = static_cast<std::int64_t>(pair_mask_bytes(params)) / (kVector * 2);
  const auto launch_of = [&]<class T> {
    launch(stream, "attention_pair_mask", pair_mask_kernel<T>, ceil_div(vectors, kThreads),
           kThreads, 0, params, static_cast<T*>(workspace), vectors,
           static_cast<int>(vectors_of_row));
  };
  if (dtype == DType::float16) {
    launch_of.template operator()<Half>();
  } else {
    launch_of.template operator()<BFloat16>();
  }
  std::int64_t step = params.length * vectors_of_row * kVector;
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    std::int64_t& stride = params.mask_strides.batch[axis];
    if (stride == 0) continue;
    stride = step;
    step *= params.batch_sizes[axis];
  }
  params.mask_strides.row = vectors_of_row * kVector;
  params.mask_strides.column = 1;
  params.mask = workspace;
  params.mask_kind = AttentionMask::additive;
}

}  // namespace tenon::cuda
