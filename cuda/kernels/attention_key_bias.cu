// Masks that are the same for all queries of a batch, such as those of padding: what they add to the scores
// of each key, and which keys they hide at either end, for the attention kernels on tensor cores. A block
// for each batch.
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/attention_common.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;

/// In units of log2; -inf past the keys.
template <class T>
__device__ __forceinline__ float bias_of(const AttentionParams& params, const char* mask,
                                         std::int64_t key) {
  if (key >= params.keys) return -INFINITY;
  return apply_mask<T>(params, mask, 0, key, 0.0F);
}

template <class T>
__global__ void __launch_bounds__(kThreads) key_bias_kernel(const AttentionParams params) {
  __shared__ float scratch[kWarp];
  const std::int64_t batch = block_index();
  if (batch >= params.batches) return;
  const std::int64_t element =
      params.mask_kind == AttentionMask::additive ? static_cast<std::int64_t>(sizeof(T)) : 1;
  const char* mask = static_cast<const char*>(params.mask) +
                     batch_offset(params, params.mask_strides, batch) * element;
  float* target = const_cast<float*>(params.key_bias) + batch * params.key_bias_stride;
  float largest = -INFINITY;
  for (std::int64_t key = threadIdx.x; key < params.key_bias_stride; key += kThreads) {
    const float bias = bias_of<T>(params, mask, key);
    target[key] = bias;
    largest = fmaxf(largest, bias);
  }
  largest = group_reduce(largest, kThreads, scratch, NumberMax{});
  constexpr float kHidden = 7.9228162514264337593543950336e28F;  // 2^96
  float first = static_cast<float>(params.keys), end = 0;  // exact: there are at most 2^24 keys
  for (std::int64_t key = threadIdx.x; key < params.keys; key += kThreads) {
    const float bias = bias_of<T>(params, mask, key);
    if (bias == -INFINITY || bias < largest - kHidden) continue;
    first = fminf(first, static_cast<float>(key));
    end = static_cast<float>(key + 1);
  }
  first = -group_reduce(-first, kThreads, scratch, NumberMax{});
  end = group_reduce(end, kThreads, scratch, NumberMax{});
  if (threadIdx.x != 0) return;
  auto* live = const_cast<std::int32_t*>(params.live_keys) + 2 * batch;
  live[0] = end > first ? static_cast<std::int32_t>(first) : 0;
  live[1] = static_cast<std::int32_t>(end);
}

}  // namespace

void launch_key_bias(const AttentionParams& params, DType dtype, Stream stream) {
  const auto launch_of = [&]<class T> {
    launch(stream, "attention_key_bias", key_bias_kernel<T>, params.batches, kThreads, 0, params);
  };
  if (dtype == DType::float16) return launch_of.template operator()<Half>();
  if (dtype == DType::bfloat16) return launch_of.template operator()<BFloat16>();
  launch_of.template operator()<float>();
}

}  // namespace tenon::cuda
