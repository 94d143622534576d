// Batch norm in evaluation as a factor and an addend for each channel, float32, from 16-bit statistics.
#pragma once

#include "cuda/launch.h"
#include "tensor/dtype.h"

namespace tenon::cuda {

/// Vectors of `channels` elements: of the dtype, but mean, factor, scale and shift, which are float32.
struct ChannelAffine {
  std::int64_t channels = 0;
  const void* running_mean = nullptr;
  const void* running_var = nullptr;
  const void* weight = nullptr;  // null: 1
  const void* bias = nullptr;    // null: 0
  double eps = 0;
  float* mean = nullptr;
  float* factor = nullptr;   // 1/√(var + eps)
  void* new_mean = nullptr;  // the running statistics again
  void* new_var = nullptr;
  float* scale = nullptr;
  float* shift = nullptr;  // batch_norm(x) = x·scale + shift
};

void compute_channel_affine(Stream stream, const char* name, DType dtype, const ChannelAffine& p);

}  // namespace tenon::cuda
