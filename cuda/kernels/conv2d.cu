// conv2d and its gradients, directly: a thread for each element of the output or of the input's gradient,
// a block for each element of the weight's. For every dtype, size and group count, summed in the compute
// type in a fixed order. Operands may have any strides. cuDNN (conv2d_cudnn.cpp) is preferred where it fits.
#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/conv2d.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/calls/window.h"

namespace tenon::cuda {
namespace {

using ops::ConvGeometry;
using ops::WindowAxis;

constexpr int kThreads = 256;

/// Strides of four axes.
struct Axes {
  std::int64_t stride[4] = {};
  Axes() = default;
  explicit Axes(const TensorView& view) {
    for (int axis = 0; axis < 4; ++axis) stride[axis] = view.stride(axis);
  }
  __device__ __forceinline__ std::int64_t at(std::int64_t a, std::int64_t b, std::int64_t c,
                                             std::int64_t d) const {
    return a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3];
  }
};

struct ConvParams {
  const void* input = nullptr;   // (N, C, H, W)
  const void* weight = nullptr;  // (O, C/groups, KH, KW)
  const void* bias = nullptr;    // (O) or null
  const void* grad = nullptr;    // (N, O, H', W')
  void* target = nullptr;
  Axes input_axes, weight_axes, grad_axes, target_axes;
  std::int64_t numel = 0;  // of the target
  std::int64_t samples, channels, filters;
  std::int64_t group_channels, group_filters;
  WindowAxis h, w;

  explicit ConvParams(const ConvGeometry& g)
      : samples(g.samples),
        channels(g.channels),
        filters(g.filters),
        group_channels(g.channels_of_group()),
        group_filters(g.filters_of_group()),
        h(g.h),
        w(g.w) {}
};

/// A row-major index over (outer, channels, height, width).
struct Position {
  std::int64_t outer, channel, y, x;
  __device__ __forceinline__ Position(std::int64_t index, std::int64_t channels,
                                      std::int64_t height, std::int64_t width) {
    x = index % width;
    index /= width;
    y = index % height;
    index /= height;
    channel = index % channels;
    outer = index / channels;
  }
};

/// The output position whose window meets input position `at` with kernel offset k, or -1.
__device__ __forceinline__ std::int64_t output_of(const WindowAxis& axis, std::int64_t at,
                                                  std::int64_t k) {
  const std::int64_t scaled = at + axis.padding - k * axis.dilation;
  if (scaled < 0 || scaled % axis.stride != 0) return -1;
  const std::int64_t position = scaled / axis.stride;
  return position < axis.output ? position : -1;
}

template <class T>
__global__ void __launch_bounds__(kThreads) conv2d_kernel(const ConvParams p) {
  using C = compute_type<T>;
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index >= p.numel) return;
  const Position at(index, p.filters, p.h.output, p.w.output);
  const std::int64_t first_channel = at.channel / p.group_filters * p.group_channels;
  const T* input = static_cast<const T*>(p.input);
  const T* weight = static_cast<const T*>(p.weight);
  C sum = C(0);
  for (std::int64_t c = 0; c < p.group_channels; ++c) {
    for (std::int64_t i = 0; i < p.h.kernel; ++i) {
      const std::int64_t y = at.y * p.h.stride - p.h.padding + i * p.h.dilation;
      if (y < 0 || y >= p.h.input) continue;
      for (std::int64_t j = 0; j < p.w.kernel; ++j) {
        const std::int64_t x = at.x * p.w.stride - p.w.padding + j * p.w.dilation;
        if (x < 0 || x >= p.w.input) continue;
        sum += widen(input[p.input_axes.at(at.outer, first_channel + c, y, x)]) *
               widen(weight[p.weight_axes.at(at.channel, c, i, j)]);
      }
    }
  }
  if (p.bias) sum += widen(static_cast<const T*>(p.bias)[at.channel]);
  static_cast<T*>(p.target)[p.target_axes.at(at.outer, at.channel, at.y, at.x)] = convert<T>(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads) conv2d_backward_input_kernel(const ConvParams p) {
  using C = compute_type<T>;
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index >= p.numel) return;
  const Position at(index, p.channels, p.h.input, p.w.input);
  const std::int64_t group = at.channel / p.group_channels;
  const std::int64_t channel = at.channel - group * p.group_channels;
  const std::int64_t first = group * p.group_filters;
  C sum = C(0);
  for (std::int64_t i = 0; i < p.h.kernel; ++i) {
    const std::int64_t y = output_of(p.h, at.y, i);
    if (y < 0) continue;
    for (std::int64_t j = 0; j < p.w.kernel; ++j) {
      const std::int64_t x = output_of(p.w, at.x, j);
      if (x < 0) continue;
      for (std::int64_t o = first; o < first + p.group_filters; ++o) {
        const std::int64_t grad = p.grad_axes.at(at.outer, o, y, x);
        const std::int64_t weight = p.weight_axes.at(o, channel, i, j);
        sum += widen(static_cast<const T*>(p.grad)[grad]) *
               widen(static_cast<const T*>(p.weight)[weight]);
      }
    }
  }
  static_cast<T*>(p.target)[p.target_axes.at(at.outer, at.channel, at.y, at.x)] = convert<T>(sum);
}

/// A block sums over samples and positions for one element (o, c, i, j).
template <class T>
__global__ void __launch_bounds__(kThreads) conv2d_backward_weight_kernel(const ConvParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const std::int64_t index = block_index();
  if (index >= p.numel) return;
  const Position at(index, p.group_channels, p.h.kernel, p.w.kernel);
  const std::int64_t channel = at.outer / p.group_filters * p.group_channels + at.channel;
  const std::int64_t positions = p.h.output * p.w.output;
  C sum = C(0);
  for (std::int64_t i = threadIdx.x; i < p.samples * positions; i += kThreads) {
    const std::int64_t sample = i / positions;
    const std::int64_t position = i - sample * positions;
    const std::int64_t oy = position / p.w.output;
    const std::int64_t ox = position - oy * p.w.output;
    const std::int64_t y = oy * p.h.stride - p.h.padding + at.y * p.h.dilation;
    const std::int64_t x = ox * p.w.stride - p.w.padding + at.x * p.w.dilation;
    if (y < 0 || y >= p.h.input || x < 0 || x >= p.w.input) continue;
    const std::int64_t input = p.input_axes.at(sample, channel, y, x);
    const std::int64_t grad = p.grad_axes.at(sample, at.outer, oy, ox);
    sum +=
        widen(static_cast<const T*>(p.input)[input]) * widen(static_cast<const T*>(p.grad)[grad]);
  }
  sum = group_reduce(sum, kThreads, scratch, Sum{});
  if (threadIdx.x == 0) {
    static_cast<T*>(p.target)[p.target_axes.at(at.outer, at.channel, at.y, at.x)] =
        convert<T>(sum);
  }
}

}  // namespace

void conv2d_directly(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  ConvParams p(
      ConvGeometry(args.attributes<Conv2dAttrs>(), args.inputs[0], args.inputs[1], output));
  p.input = args.inputs[0].data;
  p.weight = args.inputs[1].data;
  p.bias = args.inputs[2].present ? args.inputs[2].data : nullptr;
  p.target = output.data;
  p.input_axes = Axes(args.inputs[0]);
  p.weight_axes = Axes(args.inputs[1]);
  p.target_axes = Axes(output);
  p.numel = output.numel();
  dispatch_float(output.dtype, [&]<typename T>() {
    launch(stream_of(args), "conv2d", conv2d_kernel<T>, ceil_div(p.numel, kThreads), kThreads, 0,
           p);
  });
}

void conv2d_backward_input_directly(const KernelArgs& args) {
  const TensorView& target = args.outputs[0];
  ConvParams p(
      ConvGeometry(args.attributes<Conv2dBackwardAttrs>(), target, args.inputs[1], args.inputs[0]));
  p.grad = args.inputs[0].data;
  p.weight = args.inputs[1].data;
  p.target = target.data;
  p.grad_axes = Axes(args.inputs[0]);
  p.weight_axes = Axes(args.inputs[1]);
  p.target_axes = Axes(target);
  p.numel = target.numel();
  dispatch_float(target.dtype, [&]<typename T>() {
    launch(stream_of(args), "conv2d_backward_input", conv2d_backward_input_kernel<T>,
           ceil_div(p.numel, kThreads), kThreads, 0, p);
  });
}

void conv2d_backward_weight_directly(const KernelArgs& args) {
  const TensorView& target = args.outputs[0];
  ConvParams p(
      ConvGeometry(args.attributes<Conv2dBackwardAttrs>(), args.inputs[1], target, args.inputs[0]));
  p.grad = args.inputs[0].data;
  p.input = args.inputs[1].data;
  p.target = target.data;
  p.grad_axes = Axes(args.inputs[0]);
  p.input_axes = Axes(args.inputs[1]);
  p.target_axes = Axes(target);
  p.numel = target.numel();
  dispatch_float(target.dtype, [&]<typename T>() {
    launch(stream_of(args), "conv2d_backward_weight", conv2d_backward_weight_kernel<T>, p.numel,
           kThreads, 0, p);
  });
}

void register_conv2d_kernels() {
  const auto add = [](const char* op, const char* name, void (*run)(const KernelArgs&)) {
    register_kernel(op, DeviceType::cuda,
                    {.name = name,
                     .run = run,
                     .accepts = any_layout,
                     .slow_because = [](const KernelArgs&) -> std::string {
                       return "cuDNN has no deterministic engine for this convolution within 512 MiB "
                              "of workspace; other sizes or groups may have one";
                     }});
  };
  add("conv2d", "cuda.conv2d", conv2d_directly);
  add("conv2d_backward_input", "cuda.conv2d_backward_input", conv2d_backward_input_directly);
  add("conv2d_backward_weight", "cuda.conv2d_backward_weight", conv2d_backward_weight_directly);
}

}  // namespace tenon::cuda
