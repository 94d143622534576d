// Max and average pooling of (N, C, H, W), row-major or channels-last, and their gradients: a thread for
// each element of the result, in the order of memory, or channels-last for 16 bytes of neighbouring
// channels. What a small window shows is read at once. A gradient gathers from the windows that an input
// element lies in, in a fixed order, so overlapping windows need no atomics.
#include <limits>

#include "cuda/device/memory.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/calls/window.h"

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
  __device__ __forceinline__ Place(const PoolParams& p, Index index, Index height, Index width,
                                   int vector) {
    const auto channels = static_cast<Index>(p.channels) / vector;
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
    channel *= vector;
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

/// kVector neighbouring elements of any type, by 16-byte accesses.
template <int kVector, class V>
struct Elements {
  static constexpr int kLength = vector_length<V> < kVector ? vector_length<V> : kVector;
  static constexpr int kPacks = kVector / kLength;
  Pack<V, kLength> packs[kPacks];

  __device__ __forceinline__ V& operator[](int i) { return packs[i / kLength].item[i % kLength]; }
  __device__ __forceinline__ const V& operator[](int i) const {
    return packs[i / kLength].item[i % kLength];
  }
  __device__ __forceinline__ void load(const V* source) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) packs[i] = load_pack<V, kLength>(source + i * kLength);
  }
  __device__ __forceinline__ void store(V* target) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) store_pack<V, kLength>(target + i * kLength, packs[i]);
  }
};

/// f(y, x, the elements there) for all pairs of positions. Of at most kWindow positions an axis all are
/// read before the first is used; 0: of any number.
template <class Value, int kWindow, class Positions, class Load, class F>
__device__ __forceinline__ void visit(const Positions& rows, const Positions& cols,
                                      const Load& load, const F& f) {
  if constexpr (kWindow == 0) {
    for (std::int64_t y = rows.first; y < rows.last; ++y) {
      for (std::int64_t x = cols.first; x < cols.last; ++x) {
        Value value;
        load(y, x, value);
        f(y, x, value);
      }
    }
  } else {
    Value values[kWindow][kWindow];
#pragma unroll
    for (int i = 0; i < kWindow; ++i) {
#pragma unroll
      for (int j = 0; j < kWindow; ++j) {
        const std::int64_t y = rows.first + i, x = cols.first + j;
        if (y < rows.last && x < cols.last) load(y, x, values[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kWindow; ++i) {
#pragma unroll
      for (int j = 0; j < kWindow; ++j) {
        const std::int64_t y = rows.first + i, x = cols.first + j;
        if (y < rows.last && x < cols.last) f(y, x, values[i][j]);
      }
    }
  }
}

/// What reads the source's elements at (y, x) of a plane.
template <class T, int kVector>
struct LoadSource {
  const PoolParams& p;
  const T* plane;
  __device__ __forceinline__ void operator()(std::int64_t y, std::int64_t x,
                                             Elements<kVector, T>& value) const {
    value.load(plane + within(p, y, x));
  }
};

struct MaxPool {
  static constexpr bool kForward = true;
  static constexpr int kWindow = 3;
  template <class T, int kVector, int kWindow>
  static __device__ __forceinline__ void compute(const PoolParams& p, const Place& at) {
    using C = compute_type<T>;
    using Values = Elements<kVector, T>;
    const Span rows(p.h, at.y), cols(p.w, at.x);
    C largest[kVector];
    Elements<kVector, std::int64_t> best;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      largest[i] = -std::numeric_limits<C>::infinity();
      best[i] = rows.first * p.w.input + cols.first;
    }
    const LoadSource<T, kVector> load{p, static_cast<const T*>(p.source) + at.source};
    visit<Values, kWindow>(rows, cols, load, [&](auto y, auto x, const Values& values) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const C value = widen(values[i]);
        if (value > largest[i] || value != value) {
          largest[i] = value;
          best[i] = y * p.w.input + x;
        }
      }
    });
    Values result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) result[i] = convert<T>(largest[i]);
    result.store(static_cast<T*>(p.target) + at.target);
    best.store(p.indices + at.target);
  }
};

/// The gradient of some windows and where their largest elements were.
template <class T, int kVector>
struct IndexedGradient {
  Elements<kVector, T> grad;
  Elements<kVector, std::int64_t> index;
};

struct MaxPoolBackward {
  static constexpr bool kForward = false;
  static constexpr int kWindow = 2;
  template <class T, int kVector, int kWindow>
  static __device__ __forceinline__ void compute(const PoolParams& p, const Place& at) {
    using C = compute_type<T>;
    using Value = IndexedGradient<T, kVector>;
    const std::int64_t own = at.y * p.w.input + at.x;
    C sums[kVector] = {};
    const auto load = [&](std::int64_t y, std::int64_t x, Value& value) {
      const std::int64_t output = at.source + within(p, y, x);
      value.grad.load(static_cast<const T*>(p.source) + output);
      value.index.load(p.indices + output);
    };
    visit<Value, kWindow>(Windows(p.h, at.y), Windows(p.w, at.x), load,
                          [&](auto, auto, const Value& value) {
#pragma unroll
                            for (int i = 0; i < kVector; ++i) {
                              if (value.index[i] == own) sums[i] += widen(value.grad[i]);
                            }
                          });
    Elements<kVector, T> result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) result[i] = convert<T>(sums[i]);
    result.store(static_cast<T*>(p.target) + at.target);
  }
};

/// The mean over the windows or positions that `Positions` names.
template <class Positions, bool kIsForward, int kMostPositions>
struct AveragePool {
  static constexpr bool kForward = kIsForward;
  static constexpr int kWindow = kMostPositions;
  template <class T, int kVector, int kWindow>
  static __device__ __forceinline__ void compute(const PoolParams& p, const Place& at) {
    using C = compute_type<T>;
    using Values = Elements<kVector, T>;
    C sums[kVector] = {};
    const LoadSource<T, kVector> load{p, static_cast<const T*>(p.source) + at.source};
    visit<Values, kWindow>(Positions(p.h, at.y), Positions(p.w, at.x), load,
                           [&](auto, auto, const Values& values) {
#pragma unroll
                             for (int i = 0; i < kVector; ++i) sums[i] += widen(values[i]);
                           });
    const C count = static_cast<C>(p.h.kernel * p.w.kernel);
    Values result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) result[i] = convert<T>(sums[i] / count);
    result.store(static_cast<T*>(p.target) + at.target);
  }
};
using AvgPool = AveragePool<Span, true, 3>;
using AvgPoolBackward = AveragePool<Windows, false, 2>;

template <class T, class Rule, class Index, int kVector, int kWindow>
__global__ void __launch_bounds__(kThreads) pool_kernel(const PoolParams p) {
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index >= p.numel / kVector) return;
  const auto height = static_cast<Index>(Rule::kForward ? p.h.output : p.h.input);
  const auto width = static_cast<Index>(Rule::kForward ? p.w.output : p.w.input);
  const Place place(p, static_cast<Index>(index), height, width, kVector);
  Rule::template compute<T, kVector, kWindow>(p, place);
}

constexpr int kPatch = 2;

/// Patches of kPatch positions, which the same windows hold where these are kPatch apart.
__host__ __device__ __forceinline__ std::int64_t patches(const WindowAxis& axis) {
  return (axis.input - 1 + axis.padding) / kPatch + 1;
}

/// The gradient of max_pool2d for windows kPatch apart: a thread has a patch of the input, and reads each
/// of the windows that hold it once.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) max_pool_patches_kernel(const PoolParams p) {
  using C = compute_type<T>;
  constexpr int kWindow = MaxPoolBackward::kWindow;
  const auto height = static_cast<std::uint32_t>(patches(p.h));
  const auto width = static_cast<std::uint32_t>(patches(p.w));
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index >= p.numel / (p.h.input * p.w.input * kVector) * height * width) return;
  const Place at(p, static_cast<std::uint32_t>(index), height, width, kVector);
  IndexedGradient<T, kVector> values[kWindow][kWindow];
  const auto exists = [&](int i, int j) {
    const std::int64_t y = at.y - kWindow + 1 + i, x = at.x - kWindow + 1 + j;
    return y >= 0 && y < p.h.output && x >= 0 && x < p.w.output;
  };
#pragma unroll
  for (int i = 0; i < kWindow; ++i) {
#pragma unroll
    for (int j = 0; j < kWindow; ++j) {
      if (!exists(i, j)) continue;
      const std::int64_t output =
          at.source + within(p, at.y - kWindow + 1 + i, at.x - kWindow + 1 + j);
      values[i][j].grad.load(static_cast<const T*>(p.source) + output);
      values[i][j].index.load(p.indices + output);
    }
  }
  const std::int64_t plane = at.target - at.y * p.target_axes.row - at.x * p.target_axes.column;
#pragma unroll
  for (int place = 0; place < kPatch * kPatch; ++place) {
    const std::int64_t y = at.y * kPatch - p.h.padding + place / kPatch;
    const std::int64_t x = at.x * kPatch - p.w.padding + place % kPatch;
    if (y < 0 || y >= p.h.input || x < 0 || x >= p.w.input) continue;
    const std::int64_t own = y * p.w.input + x;
    C sums[kVector] = {};
#pragma unroll
    for (int window = 0; window < kWindow * kWindow; ++window) {
      const int i = window / kWindow, j = window % kWindow;
      if (!exists(i, j)) continue;
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (values[i][j].index[k] == own) sums[k] += widen(values[i][j].grad[k]);
      }
    }
    Elements<kVector, T> result;
#pragma unroll
    for (int k = 0; k < kVector; ++k) result[k] = convert<T>(sums[k]);
    result.store(static_cast<T*>(p.target) + plane + y * p.target_axes.row +
                 x * p.target_axes.column);
  }
}

/// Whether a thread visits at most `most` positions an axis.
template <class Rule>
bool visits_few(const WindowAxis& axis) {
  return (Rule::kForward ? axis.kernel : ceil_div(axis.kernel, axis.stride)) <= Rule::kWindow;
}

template <class T>
bool allows_vectors(const PoolParams& p) {
  return p.channels_last && p.channels % vector_length<T> == 0 &&
         is_aligned(p.source, kVectorBytes) && is_aligned(p.target, kVectorBytes) &&
         is_aligned(p.indices, kVectorBytes);
}

template <class Rule>
void launch_pool(const KernelArgs& args, const PoolParams& p) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    const auto start = [&]<class Index, int kVector, int kWindow>() {
      launch(stream_of(args), args.name(), pool_kernel<T, Rule, Index, kVector, kWindow>,
             ceil_div(p.numel / kVector, kThreads), kThreads, 0, p);
    };
    constexpr int kVector = vector_length<T>;
    const bool few = visits_few<Rule>(p.h) && visits_few<Rule>(p.w);
    if (p.numel >= std::int64_t{1} << 32) {
      start.template operator()<std::uint64_t, 1, 0>();
    } else if (allows_vectors<T>(p)) {
      few ? start.template operator()<std::uint32_t, kVector, Rule::kWindow>()
          : start.template operator()<std::uint32_t, kVector, 0>();
    } else {
      few ? start.template operator()<std::uint32_t, 1, Rule::kWindow>()
          : start.template operator()<std::uint32_t, 1, 0>();
    }
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
  // Patches are numbered by 32 bits, and in a plane of one element there are four.
  const bool in_patches = p.h.stride == kPatch && p.w.stride == kPatch && p.numel > 0 &&
                          visits_few<MaxPoolBackward>(p.h) && visits_few<MaxPoolBackward>(p.w) &&
                          p.numel < std::int64_t{1} << 29;
  if (!in_patches) return launch_pool<MaxPoolBackward>(args, p);
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    const int vector = allows_vectors<T>(p) ? vector_length<T> : 1;
    const std::int64_t count =
        p.numel / (p.h.input * p.w.input * vector) * patches(p.h) * patches(p.w);
    launch(stream_of(args), args.name(),
           vector == 1 ? max_pool_patches_kernel<T, 1>
                       : max_pool_patches_kernel<T, vector_length<T>>,
           ceil_div(count, kThreads), kThreads, 0, p);
  });
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
