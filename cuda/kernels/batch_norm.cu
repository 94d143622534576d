// batch_norm over contiguous (N, C, …), and its gradients: a block for each channel, which sums over samples
// and positions in a fixed order. In training the mean, then the mean squared deviation, are computed in
// the compute type; a channel is read again in each pass.
#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/detail/batch_norm_call.h"
#include "tensor/detail/wanted_gradients.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 512;

struct BatchNormParams {
  const void* input = nullptr;
  const void* grad = nullptr;  // of the output
  const void* running_mean = nullptr;
  const void* running_var = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  void* mean = nullptr;    // as used, in the compute type
  void* factor = nullptr;  // 1/√(var + eps) as used
  void* output = nullptr;  // or the gradient of the input
  void* new_mean = nullptr;
  void* new_var = nullptr;
  void* weight_grad = nullptr;
  void* bias_grad = nullptr;
  std::int64_t channels = 0;
  std::int64_t inner = 1;
  std::int64_t count = 0;  // values of a channel
  bool of_batch = false;
  double momentum = 0;
  double eps = 0;
};

/// The offset of value i of a channel.
__device__ __forceinline__ std::int64_t offset_of(const BatchNormParams& p, std::int64_t channel,
                                                  std::int64_t i) {
  const std::int64_t sample = i / p.inner;
  return (sample * p.channels + channel) * p.inner + (i - sample * p.inner);
}

/// Element `channel` of an optional vector.
template <class T>
__device__ __forceinline__ compute_type<T> element(const void* vector, std::int64_t channel,
                                                   compute_type<T> absent) {
  return vector != nullptr ? widen(static_cast<const T*>(vector)[channel]) : absent;
}

template <class T>
__device__ __forceinline__ void store_statistics(const BatchNormParams& p, std::int64_t channel,
                                                 compute_type<T> mean, compute_type<T> variance,
                                                 compute_type<T> factor) {
  using C = compute_type<T>;
  static_cast<C*>(p.mean)[channel] = mean;
  static_cast<C*>(p.factor)[channel] = factor;
  if (p.new_mean == nullptr) return;
  C moved_mean = element<T>(p.running_mean, channel, C(0));
  C moved_var = element<T>(p.running_var, channel, C(1));
  if (p.of_batch) {
    const C count = static_cast<C>(p.count);
    const C momentum = static_cast<C>(p.momentum);
    moved_mean += momentum * (mean - moved_mean);
    moved_var += momentum * (variance * count / (count - C(1)) - moved_var);
  }
  static_cast<T*>(p.new_mean)[channel] = convert<T>(moved_mean);
  static_cast<T*>(p.new_var)[channel] = convert<T>(moved_var);
}

template <class T>
__global__ void __launch_bounds__(kThreads) batch_norm_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const std::int64_t channel = block_index();
  if (channel >= p.channels) return;
  const T* input = static_cast<const T*>(p.input);
  C mean = element<T>(p.running_mean, channel, C(0));
  C variance = element<T>(p.running_var, channel, C(1));
  if (p.of_batch) {
    const C count = static_cast<C>(p.count);
    C sum = C(0);
    for (std::int64_t i = threadIdx.x; i < p.count; i += kThreads) {
      sum += widen(input[offset_of(p, channel, i)]);
    }
    mean = group_reduce(sum, kThreads, scratch, Sum{}) / count;
    C squares = C(0);
    for (std::int64_t i = threadIdx.x; i < p.count; i += kThreads) {
      const C deviation = widen(input[offset_of(p, channel, i)]) - mean;
      squares += deviation * deviation;
    }
    variance = group_reduce(squares, kThreads, scratch, Sum{}) / count;
  }
  const C factor = C(1) / sqrt_of(variance + static_cast<C>(p.eps));
  const C weight = element<T>(p.weight, channel, C(1));
  const C bias = element<T>(p.bias, channel, C(0));
  if (threadIdx.x == 0) store_statistics<T>(p, channel, mean, variance, factor);
  for (std::int64_t i = threadIdx.x; i < p.count; i += kThreads) {
    const std::int64_t at = offset_of(p, channel, i);
    static_cast<T*>(p.output)[at] = convert<T>((widen(input[at]) - mean) * factor * weight + bias);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) batch_norm_backward_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const std::int64_t channel = block_index();
  if (channel >= p.channels) return;
  const T* input = static_cast<const T*>(p.input);
  const T* grad = static_cast<const T*>(p.grad);
  const C mean = static_cast<const C*>(p.mean)[channel];
  const C factor = static_cast<const C*>(p.factor)[channel];
  C sum = C(0);
  C products = C(0);
  for (std::int64_t i = threadIdx.x; i < p.count; i += kThreads) {
    const std::int64_t at = offset_of(p, channel, i);
    const C g = widen(grad[at]);
    sum += g;
    products += g * ((widen(input[at]) - mean) * factor);
  }
  sum = group_reduce(sum, kThreads, scratch, Sum{});
  products = group_reduce(products, kThreads, scratch, Sum{});
  if (threadIdx.x == 0) {
    if (p.weight_grad) static_cast<T*>(p.weight_grad)[channel] = convert<T>(products);
    if (p.bias_grad) static_cast<T*>(p.bias_grad)[channel] = convert<T>(sum);
  }
  if (p.output == nullptr) return;
  // Statistics of the batch depend on the input too.
  const C count = static_cast<C>(p.count);
  const C shift = p.of_batch ? sum / count : C(0);
  const C slope = p.of_batch ? products / count : C(0);
  const C scale = factor * element<T>(p.weight, channel, C(1));
  for (std::int64_t i = threadIdx.x; i < p.count; i += kThreads) {
    const std::int64_t at = offset_of(p, channel, i);
    const C normalized = (widen(input[at]) - mean) * factor;
    static_cast<T*>(p.output)[at] =
        convert<T>(scale * (widen(grad[at]) - shift - normalized * slope));
  }
}

const void* data_of(const TensorView& view) { return view.present ? view.data : nullptr; }

BatchNormParams params_of(const ops::ChannelSizes& sizes, bool of_batch) {
  BatchNormParams p;
  p.channels = sizes.channels;
  p.inner = sizes.inner;
  p.count = sizes.count();
  p.of_batch = of_batch;
  return p;
}

void run_batch_norm(const KernelArgs& args) {
  const auto& attrs = args.attributes<BatchNormAttrs>();
  const ops::ChannelSizes sizes(args.inputs[0]);
  const bool of_batch = ops::uses_batch_statistics(attrs.mode, args.training, sizes);
  BatchNormParams p = params_of(sizes, of_batch);
  p.input = args.inputs[0].data;
  p.running_mean = data_of(args.inputs[1]);
  p.running_var = data_of(args.inputs[2]);
  p.weight = data_of(args.inputs[3]);
  p.bias = data_of(args.inputs[4]);
  p.output = args.outputs[0].data;
  p.mean = args.outputs[1].data;
  p.factor = args.outputs[2].data;
  if (args.outputs.size() > 3) {
    p.new_mean = args.outputs[3].data;
    p.new_var = args.outputs[4].data;
  }
  p.momentum = attrs.momentum;
  p.eps = attrs.eps;
  dispatch_float(args.inputs[0].dtype, [&]<typename T>() {
    launch(stream_of(args), "batch_norm", batch_norm_kernel<T>, p.channels, kThreads, 0, p);
  });
}

void run_batch_norm_backward(const KernelArgs& args) {
  const auto& attrs = args.attributes<BatchNormBackwardAttrs>();
  const ops::WantedGradients wanted(args, attrs);
  const ops::ChannelSizes sizes(args.inputs[1]);
  BatchNormParams p =
      params_of(sizes, ops::uses_batch_statistics(attrs.mode, args.training, sizes));
  p.grad = args.inputs[0].data;
  p.input = args.inputs[1].data;
  p.weight = data_of(args.inputs[2]);
  p.mean = args.inputs[3].data;
  p.factor = args.inputs[4].data;
  p.output = wanted.input ? wanted.input->data : nullptr;
  p.weight_grad = wanted.weight ? wanted.weight->data : nullptr;
  p.bias_grad = wanted.bias ? wanted.bias->data : nullptr;
  dispatch_float(args.inputs[1].dtype, [&]<typename T>() {
    launch(stream_of(args), "batch_norm_backward", batch_norm_backward_kernel<T>, p.channels,
           kThreads, 0, p);
  });
}

}  // namespace

void register_batch_norm_kernels() {
  register_kernel("batch_norm", DeviceType::cuda,
                  {.name = "cuda.batch_norm", .run = run_batch_norm});
  register_kernel("batch_norm_backward", DeviceType::cuda,
                  {.name = "cuda.batch_norm_backward", .run = run_batch_norm_backward});
}

}  // namespace tenon::cuda
