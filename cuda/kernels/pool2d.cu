// Max and average pooling of contiguous (N, C, H, W), and their gradients: a thread for each element of
// the result. A gradient gathers from the windows that an input element lies in, in a fixed order, so
// overlapping windows need no atomics.
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

struct PoolParams {
  const void* source = nullptr;  // the input, or the gradient of the output
  void* target = nullptr;
  std::int64_t* indices = nullptr;  // of max_pool2d, per output element
  std::int64_t numel = 0;           // of the target
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

/// Plane, row and column of an element.
struct Place {
  std::int64_t plane, y, x;
  __device__ __forceinline__ Place(std::int64_t index, std::int64_t height, std::int64_t width) {
    x = index % width;
    index /= width;
    y = index % height;
    plane = index / height;
  }
};

struct MaxPool {
  template <class T>
  static __device__ __forceinline__ void compute(const PoolParams& p, std::int64_t index) {
    using C = compute_type<T>;
    const Place at(index, p.h.output, p.w.output);
    const T* input = static_cast<const T*>(p.source) + at.plane * p.h.input * p.w.input;
    const Span rows(p.h, at.y), cols(p.w, at.x);
    std::int64_t best = rows.first * p.w.input + cols.first;
    C largest = -std::numeric_limits<C>::infinity();
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x) {
        const C value = widen(input[y * p.w.input + x]);
        if (value > largest || value != value) {
          largest = value;
          best = y * p.w.input + x;
        }
      }
    }
    static_cast<T*>(p.target)[index] = convert<T>(largest);
    p.indices[index] = best;
  }
};

struct MaxPoolBackward {
  template <class T>
  static __device__ __forceinline__ void compute(const PoolParams& p, std::int64_t index) {
    using C = compute_type<T>;
    const Place at(index, p.h.input, p.w.input);
    const std::int64_t own = at.y * p.w.input + at.x;
    const std::int64_t first = at.plane * p.h.output * p.w.output;
    const Windows rows(p.h, at.y), cols(p.w, at.x);
    C sum = C(0);
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x) {
        const std::int64_t output = first + y * p.w.output + x;
        if (p.indices[output] == own) sum += widen(static_cast<const T*>(p.source)[output]);
      }
    }
    static_cast<T*>(p.target)[index] = convert<T>(sum);
  }
};

struct AvgPool {
  template <class T>
  static __device__ __forceinline__ void compute(const PoolParams& p, std::int64_t index) {
    using C = compute_type<T>;
    const Place at(index, p.h.output, p.w.output);
    const T* input = static_cast<const T*>(p.source) + at.plane * p.h.input * p.w.input;
    const Span rows(p.h, at.y), cols(p.w, at.x);
    C total = C(0);
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x)
        total += widen(input[y * p.w.input + x]);
    }
    static_cast<T*>(p.target)[index] = convert<T>(total / static_cast<C>(p.h.kernel * p.w.kernel));
  }
};

struct AvgPoolBackward {
  template <class T>
  static __device__ __forceinline__ void compute(const PoolParams& p, std::int64_t index) {
    using C = compute_type<T>;
    const Place at(index, p.h.input, p.w.input);
    const T* grad = static_cast<const T*>(p.source) + at.plane * p.h.output * p.w.output;
    const Windows rows(p.h, at.y), cols(p.w, at.x);
    const C count = static_cast<C>(p.h.kernel * p.w.kernel);
    C sum = C(0);
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x)
        sum += widen(grad[y * p.w.output + x]) / count;
    }
    static_cast<T*>(p.target)[index] = convert<T>(sum);
  }
};

template <class T, class Rule>
__global__ void __launch_bounds__(kThreads) pool_kernel(const PoolParams p) {
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index < p.numel) Rule::template compute<T>(p, index);
}

template <class Rule>
void launch_pool(const KernelArgs& args, const PoolParams& p) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    launch(stream_of(args), args.name(), pool_kernel<T, Rule>, ceil_div(p.numel, kThreads),
           kThreads, 0, p);
  });
}

PoolParams params_of(const KernelArgs& args, const PoolGeometry& g) {
  PoolParams p;
  p.source = args.inputs[0].data;
  p.target = args.outputs[0].data;
  p.numel = args.outputs[0].numel();
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
  register_kernel("max_pool2d", DeviceType::cuda,
                  {.name = "cuda.max_pool2d", .run = run_max_pool2d});
  register_kernel("max_pool2d_backward", DeviceType::cuda,
                  {.name = "cuda.max_pool2d_backward", .run = run_max_pool2d_backward});
  register_kernel("avg_pool2d", DeviceType::cuda,
                  {.name = "cuda.avg_pool2d", .run = run_avg_pool2d});
  register_kernel("avg_pool2d_backward", DeviceType::cuda,
                  {.name = "cuda.avg_pool2d_backward", .run = run_avg_pool2d_backward});
}

}  // namespace tenon::cuda
