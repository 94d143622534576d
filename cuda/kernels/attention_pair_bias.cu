// Masks of (queries, keys) that float32's attention kernels cannot copy where they lie, of bools, strided or
// unaligned: as floats in rows that are dense and aligned to 16 bytes, for each matrix of its own. A thread
// writes four neighbours.
#include "cuda/kernels/attention_common.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    pair_bias_kernel(const __grid_constant__ AttentionParams params, std::int64_t matrices) {
  const std::int64_t chunks = params.pair_strides.row / 4;
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index >= matrices * params.length * chunks) return;
  const std::int64_t outer = divide(index, chunks);
  const std::int64_t key = (index - outer * chunks) * 4;
  std::int64_t matrix = divide(outer, params.length);
  const std::int64_t query = outer - matrix * params.length;
  std::int64_t offset = query * params.mask_strides.row;
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    if (params.mask_strides.batch[axis] == 0) continue;
    const std::int64_t quotient = divide(matrix, params.batch_sizes[axis]);
    offset += (matrix - quotient * params.batch_sizes[axis]) * params.mask_strides.batch[axis];
    matrix = quotient;
  }
  const bool is_bool = params.mask_kind == AttentionMask::boolean;
  float values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::int64_t element = offset + (key + i) * params.mask_strides.column;
    values[i] = -INFINITY;
    if (key + i >= params.keys) continue;
    if (!is_bool) {
      values[i] = static_cast<const float*>(params.mask)[element];
    } else if (static_cast<const char*>(params.mask)[element] != 0) {
      values[i] = 0;
    }
  }
  float* target = const_cast<float*>(params.pair_bias) + outer * params.pair_strides.row + key;
  *reinterpret_cast<float4*>(target) = make_float4(values[0], values[1], values[2], values[3]);
}

}  // namespace

void launch_pair_bias(const AttentionParams& params, Stream stream) {
  std::int64_t matrices = 1;
  for (int axis = 0; axis < params.batch_axes; ++axis) {
    if (params.mask_strides.batch[axis] != 0) matrices *= params.batch_sizes[axis];
  }
  const std::int64_t chunks = matrices * params.length * (params.pair_strides.row / 4);
  launch(stream, "attention_pair_bias", pair_bias_kernel, ceil_div(chunks, kThreads), kThreads, 0,
         params, matrices);
}

}  // namespace tenon::cuda
