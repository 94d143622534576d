// Max and average pooling of (N, C, H, W), row-major or channels-last, and their gradients: a thread for
// each element of the result, in the order of memory. A gradient gathers from the windows that an input
// element lies in, in a fixed order, so overlapping windows need no atomics.
#include <limits>

#include "cuda/device/memory.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/detail/window.h"

namespace tenon::cuda {
namespace {

using ops::PoolGeometry;
using ops::WindowAxis;

constexpr int kThreads = 256;

/// Strides of an image.
struct ImageAxes {
  std::int64_t sample = 0, channel = 0, row = 0, column = 0;
  ImageAxes() = default;
  explicit ImageAxes(const TensorView& view)
      : sample(view.stride(0)),
        channel(view.stride(1)),
        row(view.stride(2)),
        column(view.stride(3)) {}
};

struct PoolParams {
  const void* source = nullptr;  // the input, or the gradient of the output
  void* target = nullptr;
  std::int64_t* indices = nullptr;  // of max_pool2d, per output element, which lie as those do
  ImageAxes source_axes, target_axes;
  std::int64_t numel = 0;  // of the target
  std::int64_t channels = 1;
  bool channels_last = false;
  WindowAxis h, w;
};

/// The part of the axis that output position o sees.
struct Span {
  std::int64_t first, last;
  __device__ __forceinline__ Span(const WindowAxis& axis, std::int64_t o) {
    const std::int64_t start = o * axis.stride - axis.padding;
    first = start > 0 ? start : 0;
    last = start + axis.kernel < axis.input ? start + axis.kernel : axis.input;
  }
};

/// The output positions whose windows hold input position `at`.
struct Windows {
  std::int64_t first, last;
  __device__ __forceinline__ Windows(const WindowAxis& axis, std::int64_t at) {
    const std::int64_t past = at + axis.padding - axis.kernel;  // the last start that is too early
    first = past < 0 ? 0 : past / axis.stride + 1;
    last = (at + axis.padding) / axis.stride + 1;
    if (last > axis.output) last = axis.output;
  }
};

/// Where an element of the target is, and where its plane starts in the source.
struct Place {
  std::int64_t y, x;
  std::int64_t target;  // offset of the element
  std::int64_t source;  // offset of the plane

  template <class Index>
  __device__ __forceinline__ Place(const PoolParams& p, Index index, Index height, Index width) {
    const auto channels = static_cast<Index>(p.channels);
    Index sample, channel, row, column;
    if (p.channels_last) {
      channel = index % channels;
      index /= channels;
      column = index % width;
      index /= width;
      row = index % height;
      sample = index / height;
    } else {
      column = index % width;
      index /= width;
      row = index % height;
      index /= height;
      channel = index % channels;
      sample = index / channels;
    }
    y = row;
    x = column;
    target = sample * p.target_axes.sample + channel * p.target_axes.channel +
             y * p.target_axes.row + x * p.target_axes.column;
    source = sample * p.source_axes.sample + channel * p.source_axes.channel;
  }
};

/// The offset of (y, x) in a plane of the source.
__device__ __forceinline__ std::int64_t within(const PoolParams& p, std::int64_t y,
                                               std::int64_t x) {
  return y * p.source_axes.row + x * p.source_axes.column;
}

struct MaxPool {
  static constexpr bool kForward = true;
  template <class T>
  static __device__ __forceinline__ void compute(const PoolParams& p, const Place& at) {
    using C = compute_type<T>;
    const T* input = static_cast<const T*>(p.source) + at.source;
    const Span rows(p.h, at.y), cols(p.w, at.x);
    std::int64_t best = rows.first * p.w.input + cols.first;
    C largest = -std::numeric_limits<C>::infinity();
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x) {
        const C value = widen(input[within(p, y, x)]);
        if (value > largest || value != value) {
          largest = value;
          best = y * p.w.input + x;
        }
      }
    }
    static_cast<T*>(p.target)[at.target] = convert<T>(largest);
    p.indices[at.target] = best;
  }
};

struct MaxPoolBackward {
  static constexpr bool kForward = false;
  template <class T>
  static __device__ __forceinline__ void compute(const PoolParams& p, const Place& at) {
    using C = compute_type<T>;
    const std::int64_t own = at.y * p.w.input + at.x;
    const Windows rows(p.h, at.y), cols(p.w, at.x);
    C sum = C(0);
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x) {
        const std::int64_t output = at.source + within(p, y, x);
        if (p.indices[output] == own) sum += widen(static_cast<const T*>(p.source)[output]);
      }
    }
    static_cast<T*>(p.target)[at.target] = convert<T>(sum);
  }
};

struct AvgPool {
  static constexpr bool kForward = true;
  template <class T>
  static __device__ __forceinline__ void compute(const PoolParams& p, const Place& at) {
    using C = compute_type<T>;
    const T* input = static_cast<const T*>(p.source) + at.source;
    const Span rows(p.h, at.y), cols(p.w, at.x);
    C total = C(0);
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x) total += widen(input[within(p, y, x)]);
    }
    static_cast<T*>(p.target)[at.target] =
        convert<T>(total / static_cast<C>(p.h.kernel * p.w.kernel));
  }
};

struct AvgPoolBackward {
  static constexpr bool kForward = false;
  template <class T>
  static __device__ __forceinline__ void compute(const PoolParams& p, const Place& at) {
    using C = compute_type<T>;
    const T* grad = static_cast<const T*>(p.source) + at.source;
    const Windows rows(p.h, at.y), cols(p.w, at.x);
    const C count = static_cast<C>(p.h.kernel * p.w.kernel);
    C sum = C(0);
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x)
        sum += widen(grad[within(p, y, x)]) / count;
    }
    static_cast<T*>(p.target)[at.target] = convert<T>(sum);
  }
};

template <class T, class Rule, class Index>
__global__ void __launch_bounds__(kThreads) pool_kernel(const PoolParams p) {
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index >= p.numel) return;
  const auto height = static_cast<Index>(Rule::kForward ? p.h.output : p.h.input);
  const auto width = static_cast<Index>(Rule::kForward ? p.w.output : p.w.input);
  Rule::template compute<T>(p, Place(p, static_cast<Index>(index), height, width));
}

template <class Rule>
void launch_pool(const KernelArgs& args, const PoolParams& p) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    const bool small = p.numel < (std::int64_t{1} << 32);
    launch(stream_of(args), args.name(),
           small ? pool_kernel<T, Rule, std::uint32_t> : pool_kernel<T, Rule, std::uint64_t>,
           ceil_div(p.numel, kThreads), kThreads, 0, p);
  });
}

PoolParams params_of(const KernelArgs& args, const PoolGeometry& g) {
  PoolParams p;
  p.source = args.inputs[0].data;
  p.target = args.outputs[0].data;
  p.source_axes = ImageAxes(args.inputs[0]);
  p.target_axes = ImageAxes(args.outputs[0]);
  p.numel = args.outputs[0].numel();
  p.channels = args.outputs[0].size(1);
  p.channels_last = is_channels_last(args.outputs[0].sizes, args.outputs[0].strides);
  p.h = g.h;
  p.w = g.w;
  return p;
}

PoolParams forward_params(const KernelArgs& args) {
  return params_of(args, {args.attributes<Pool2dAttrs>(), args.inputs[0], args.outputs[0]});
}

PoolParams backward_params(const KernelArgs& args) {
  return params_of(args, {args.attributes<Pool2dBackwardAttrs>(), args.outputs[0], args.inputs[0]});
}

void run_max_pool2d(const KernelArgs& args) {
  PoolParams p = forward_params(args);
  p.indices = args.outputs[1].as<std::int64_t>();
  launch_pool<MaxPool>(args, p);
}

void run_max_pool2d_backward(const KernelArgs& args) {
  PoolParams p = backward_params(args);
  p.indices = args.inputs[1].as<std::int64_t>();
  launch_pool<MaxPoolBackward>(args, p);
}

void run_avg_pool2d(const KernelArgs& args) { launch_pool<AvgPool>(args, forward_params(args)); }

void run_avg_pool2d_backward(const KernelArgs& args) {
  launch_pool<AvgPoolBackward>(args, backward_params(args));
}

}  // namespace

void register_pool2d_kernels() {
  const auto add = [](const char* op, const char* name, void (*run)(const KernelArgs&)) {
    register_kernel(op, DeviceType::cuda,
                    {.name = name, .run = run, .image_layout = [](const KernelArgs&) {
                       return ImageLayout::as_operands;
                     }});
  };
  add("max_pool2d", "cuda.max_pool2d", run_max_pool2d);
  add("max_pool2d_backward", "cuda.max_pool2d_backward", run_max_pool2d_backward);
  add("avg_pool2d", "cuda.avg_pool2d", run_avg_pool2d);
  add("avg_pool2d_backward", "cuda.avg_pool2d_backward", run_avg_pool2d_backward);
}

}  // namespace tenon::cuda
