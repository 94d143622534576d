// See channel_affine.h. A thread for each channel.
#include "cuda/kernels/channel_affine.h"

#include "cuda/device/convert.cuh"
#include "cuda/device/memory.cuh"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) channel_affine_kernel(const ChannelAffine p) {
  const std::int64_t i = block_index() * kThreads + threadIdx.x;
  if (i >= p.channels) return;
  const T old_mean = static_cast<const T*>(p.running_mean)[i];
  const T old_var = static_cast<const T*>(p.running_var)[i];
  const float weight = p.weight != nullptr ? widen(static_cast<const T*>(p.weight)[i]) : 1.0f;
  const float bias = p.bias != nullptr ? widen(static_cast<const T*>(p.bias)[i]) : 0.0f;
  const float mean = widen(old_mean);
  const float factor = 1.0f / sqrtf(widen(old_var) + static_cast<float>(p.eps));
  const float scale = factor * weight;
  p.scale[i] = scale;
  p.shift[i] = fmaf(-mean, scale, bias);
  p.mean[i] = mean;
  p.factor[i] = factor;
  static_cast<T*>(p.new_mean)[i] = old_mean;
  static_cast<T*>(p.new_var)[i] = old_var;
}

}  // namespace

void compute_channel_affine(Stream stream, const char* name, DType dtype, const ChannelAffine& p) {
  const std::int64_t blocks = ceil_div(p.channels, kThreads);
  if (dtype == DType::float16) {
    launch(stream, name, channel_affine_kernel<Half>, blocks, kThreads, 0, p);
  } else {
    launch(stream, name, channel_affine_kernel<BFloat16>, blocks, kThreads, 0, p);
  }
}

}  // namespace tenon::cuda
