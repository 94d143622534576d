// batch_norm over (N, C, …), row-major or channels-last, and its gradients, at the rate of memory. A block
// walks over a part of one channel, or of some neighbouring ones where channels lie last; what it sums up
// goes to the workspace, and a second kernel combines the parts of each channel in a fixed order. Parts
// are cut by sizes alone. Mean and squared deviations of parts are combined as in T. Chan, G. Golub, R.
// LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
#include <algorithm>

#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/detail/batch_norm_call.h"
#include "tensor/detail/wanted_gradients.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostParts = 256;

/// Where a block's threads go: `lanes` of them stand side by side along the channels, the others share
/// the positions [part·chunk, …). `positions` are values of a channel in units of a vector; channels-last a
/// vector covers neighbouring channels, row-major neighbouring values of one.
struct Walk {
  bool channels_last = false;
  std::int64_t channels = 0;
  std::int64_t inner = 1;  // vectors of a sample's channel, row-major
  std::int64_t positions = 0;
  std::int64_t tiles = 0;  // of channels
  std::int64_t parts = 0;
  std::int64_t chunk = 0;
  int lanes = 1;
};

struct BatchNormParams {
  Walk walk;
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
  void* parts = nullptr;   // (2, parts, channels) of the compute type
  void* totals = nullptr;  // (2, channels): what the gradients of statistics subtract
  std::int64_t count = 0;  // values of a channel
  bool of_batch = false;
  double momentum = 0;
  double eps = 0;
};

/// How many of `positions` one channel's or tile's blocks share, for `blocks` blocks in all.
Walk walk_of(const ops::ChannelSizes& sizes, bool channels_last, int vector, std::int64_t blocks,
             std::int64_t least_steps) {
  Walk walk;
  walk.channels_last = channels_last;
  walk.channels = sizes.channels;
  walk.inner = std::max<std::int64_t>(sizes.inner / (channels_last ? 1 : vector), 1);
  walk.positions = sizes.count() == 0 ? 0 : sizes.samples * walk.inner;
  if (channels_last) {
    const std::int64_t columns = sizes.channels / vector;
    while (walk.lanes < kWarp && walk.lanes < columns) walk.lanes *= 2;
    walk.tiles = ceil_div(columns, walk.lanes);
  } else {
    walk.tiles = sizes.channels;
  }
  const std::int64_t side = kThreads / walk.lanes;
  const std::int64_t most =
      std::max<std::int64_t>(ceil_div(walk.positions, side * least_steps), 1);
  const std::int64_t wanted = std::clamp<std::int64_t>(ceil_div(blocks, walk.tiles), 1, most);
  walk.chunk = std::max<std::int64_t>(ceil_div(walk.positions, wanted), 1);
  walk.parts = std::max<std::int64_t>(ceil_div(walk.positions, walk.chunk), 1);
  return walk;
}

/// Sums are cut for some 500 blocks, at most kMostParts of a channel.
Walk sums_walk(const ops::ChannelSizes& sizes, bool channels_last, int vector) {
  const std::int64_t tiles =
      channels_last ? ceil_div(sizes.channels, std::int64_t{vector} * kWarp) : sizes.channels;
  return walk_of(sizes, channels_last, vector,
                 std::min<std::int64_t>(528, kMostParts * std::max<std::int64_t>(tiles, 1)), 4);
}

/// One thread's way: f(offset of a vector) for each of its positions. `channel` is its first one, or
/// past the end where it has none.
struct Way {
  std::int64_t channel, part;
  int side, sides;

  template <int kVector>
  static __device__ __forceinline__ Way make(const Walk& w) {
    Way way;
    const std::int64_t block = block_index();
    way.part = block / w.tiles;
    const std::int64_t tile = block - way.part * w.tiles;
    const int lane = static_cast<int>(threadIdx.x) % w.lanes;
    way.side = static_cast<int>(threadIdx.x) / w.lanes;
    way.sides = kThreads / w.lanes;
    way.channel = w.channels_last ? (tile * w.lanes + lane) * kVector : tile;
    return way;
  }

  template <int kVector, class F>
  __device__ __forceinline__ void for_each(const Walk& w, F f) const {
    if (channel >= w.channels) return;
    const std::int64_t first = part * w.chunk;
    const std::int64_t last = min(first + w.chunk, w.positions);
    if (w.channels_last) {
#pragma unroll 4
      for (std::int64_t i = first + side; i < last; i += sides) f(i * w.channels + channel);
    } else {
      for (std::int64_t i = first + side; i < last; i += sides) {
        const std::int64_t sample = static_cast<std::uint32_t>(i) == i && w.inner < (1LL << 32)
                                        ? static_cast<std::uint32_t>(i) /
                                              static_cast<std::uint32_t>(w.inner)
                                        : i / w.inner;
        f(((sample * w.channels + channel) * w.inner + (i - sample * w.inner)) * kVector);
      }
    }
  }
};

/// Element `channel` of an optional vector.
template <class T>
__device__ __forceinline__ compute_type<T> element(const void* vector, std::int64_t channel,
                                                   compute_type<T> absent) {
  return vector != nullptr ? widen(static_cast<const T*>(vector)[channel]) : absent;
}

/// How many values, their mean, and the sum of their squared deviations from it.
template <class C>
struct Moments {
  C count, mean, squares;

  __device__ __forceinline__ void merge(const Moments& other) {
    const C total = count + other.count;
    if (other.count == C(0)) return;
    const C share = other.count / total;
    const C apart = other.mean - mean;
    mean += apart * share;
    squares += other.squares + apart * apart * count * share;
    count = total;
  }
};

/// Two sums.
template <class C>
struct Sums {
  C first, second;
  __device__ __forceinline__ void merge(const Sums& other) {
    first += other.first;
    second += other.second;
  }
};

/// Merges what the threads of a lane hold, in a fixed order; those of side 0 get it. `scratch` holds
/// kThreads values.
template <class V>
__device__ __forceinline__ void merge_sides(V& value, V* scratch, int lanes) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  scratch[thread] = value;
  for (int half = kThreads / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (thread < half) {
      value.merge(scratch[thread + half]);
      scratch[thread] = value;
    }
  }
}

/// The same of whole rows of threads in the kernels for totals: 32 channels, 32 threads a channel.
template <class V>
__device__ __forceinline__ void merge_rows(V& value, V* scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  scratch[thread] = value;
  for (int half = kWarp * kWarp / 2; half >= kWarp; half /= 2) {
    __syncthreads();
    if (thread < half) {
      value.merge(scratch[thread + half]);
      scratch[thread] = value;
    }
  }
}

template <class C>
__device__ __forceinline__ void store_part(const BatchNormParams& p, std::int64_t part,
                                           std::int64_t channel, C first, C second) {
  C* target = static_cast<C*>(p.parts) + part * p.walk.channels + channel;
  target[0] = first;
  target[p.walk.parts * p.walk.channels] = second;
}

/// Values of a channel in a part.
__device__ __forceinline__ std::int64_t positions_of(const Walk& w, std::int64_t part) {
  return min(w.chunk, w.positions - part * w.chunk);
}

/// Mean and squared deviations of each part.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) moments_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  __shared__ Moments<C> scratch[kThreads];
  const Way way = Way::make<kVector>(p.walk);
  C mean[kVector] = {}, squares[kVector] = {};
  C count = C(0);
  way.for_each<kVector>(p.walk, [&](std::int64_t at) {
    C x[kVector];
    load_widened<kVector>(static_cast<const T*>(p.input) + at, x);
    count += C(1);
    const C share = C(1) / count;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const C apart = x[i] - mean[i];
      mean[i] += apart * share;
      squares[i] += apart * (x[i] - mean[i]);
    }
  });
  const bool writes = way.side == 0 && way.channel < p.walk.channels;
  if (p.walk.channels_last) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      Moments<C> merged{count, mean[i], squares[i]};
      merge_sides(merged, scratch, p.walk.lanes);
      if (writes) store_part(p, way.part, way.channel + i, merged.mean, merged.squares);
    }
    return;
  }
  Moments<C> merged{count, mean[0], squares[0]};
#pragma unroll
  for (int i = 1; i < kVector; ++i) merged.merge({count, mean[i], squares[i]});
  merge_sides(merged, scratch, 1);
  if (writes) store_part(p, way.part, way.channel, merged.mean, merged.squares);
}

template <class T>
__device__ __forceinline__ void store_statistics(const BatchNormParams& p, std::int64_t channel,
                                                 compute_type<T> mean, compute_type<T> variance) {
  using C = compute_type<T>;
  static_cast<C*>(p.mean)[channel] = mean;
  static_cast<C*>(p.factor)[channel] = C(1) / sqrt_of(variance + static_cast<C>(p.eps));
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

/// Statistics from the parts, or from the running ones. A vector of `values` values is a position.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarp)
    statistics_kernel(const BatchNormParams p, int values) {
  using C = compute_type<T>;
  __shared__ Moments<C> scratch[kWarp * kWarp];
  const std::int64_t channel = block_index() * kWarp + threadIdx.x % kWarp;
  const bool exists = channel < p.walk.channels;
  const std::int64_t first = threadIdx.x / kWarp;
  if (!p.of_batch) {
    if (exists && first == 0) {
      store_statistics<T>(p, channel, element<T>(p.running_mean, channel, C(0)),
                          element<T>(p.running_var, channel, C(1)));
    }
    return;
  }
  Moments<C> total{C(0), C(0), C(0)};
  const C* parts = static_cast<const C*>(p.parts) + channel;
  const std::int64_t squares = p.walk.parts * p.walk.channels;
#pragma unroll 4
  for (std::int64_t part = first; exists && part < p.walk.parts; part += kWarp) {
    const C count = static_cast<C>(positions_of(p.walk, part) * values);
    const C* at = parts + part * p.walk.channels;
    total.merge({count, at[0], at[squares]});
  }
  merge_rows(total, scratch);
  if (exists && first == 0) {
    store_statistics<T>(p, channel, total.mean, total.squares / static_cast<C>(p.count));
  }
}

/// What a thread multiplies by and adds, for the channels of its vector.
template <class T, int kVector>
struct Channels {
  using C = compute_type<T>;
  C mean[kVector], factor[kVector], weight[kVector];

  __device__ __forceinline__ Channels(const BatchNormParams& p, std::int64_t channel) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const std::int64_t at = p.walk.channels_last ? channel + i : channel;
      if (at >= p.walk.channels) continue;
      mean[i] = static_cast<const C*>(p.mean)[at];
      factor[i] = static_cast<const C*>(p.factor)[at];
      weight[i] = element<T>(p.weight, at, C(1));
    }
  }
};

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) normalize_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  const Way way = Way::make<kVector>(p.walk);
  const Channels<T, kVector> c(p, way.channel);
  C bias[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const std::int64_t at = p.walk.channels_last ? way.channel + i : way.channel;
    bias[i] = at < p.walk.channels ? element<T>(p.bias, at, C(0)) : C(0);
  }
  way.for_each<kVector>(p.walk, [&](std::int64_t at) {
    C x[kVector];
    load_widened<kVector>(static_cast<const T*>(p.input) + at, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      x[i] = (x[i] - c.mean[i]) * c.factor[i] * c.weight[i] + bias[i];
    }
    store_narrowed<kVector>(static_cast<T*>(p.output) + at, x);
  });
}

/// Σ grad and Σ grad · normalized input of each part.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) gradient_sums_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  __shared__ Sums<C> scratch[kThreads];
  const Way way = Way::make<kVector>(p.walk);
  const Channels<T, kVector> c(p, way.channel);
  C sum[kVector] = {}, products[kVector] = {};
  way.for_each<kVector>(p.walk, [&](std::int64_t at) {
    C x[kVector], g[kVector];
    load_widened<kVector>(static_cast<const T*>(p.input) + at, x);
    load_widened<kVector>(static_cast<const T*>(p.grad) + at, g);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      sum[i] += g[i];
      products[i] += g[i] * ((x[i] - c.mean[i]) * c.factor[i]);
    }
  });
  const bool writes = way.side == 0 && way.channel < p.walk.channels;
  if (p.walk.channels_last) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      Sums<C> merged{sum[i], products[i]};
      merge_sides(merged, scratch, p.walk.lanes);
      if (writes) store_part(p, way.part, way.channel + i, merged.first, merged.second);
    }
    return;
  }
  Sums<C> merged{sum[0], products[0]};
#pragma unroll
  for (int i = 1; i < kVector; ++i) merged.merge({sum[i], products[i]});
  merge_sides(merged, scratch, 1);
  if (writes) store_part(p, way.part, way.channel, merged.first, merged.second);
}

template <class T>
__global__ void __launch_bounds__(kWarp* kWarp) gradient_totals_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  __shared__ Sums<C> scratch[kWarp * kWarp];
  const std::int64_t channel = block_index() * kWarp + threadIdx.x % kWarp;
  const bool exists = channel < p.walk.channels;
  const std::int64_t first = threadIdx.x / kWarp;
  Sums<C> total{C(0), C(0)};
  const C* parts = static_cast<const C*>(p.parts) + channel;
  const std::int64_t second = p.walk.parts * p.walk.channels;
#pragma unroll 4
  for (std::int64_t part = first; exists && part < p.walk.parts; part += kWarp) {
    const C* at = parts + part * p.walk.channels;
    total.merge({at[0], at[second]});
  }
  merge_rows(total, scratch);
  if (!exists || first != 0) return;
  if (p.weight_grad) static_cast<T*>(p.weight_grad)[channel] = convert<T>(total.second);
  if (p.bias_grad) static_cast<T*>(p.bias_grad)[channel] = convert<T>(total.first);
  // Statistics of the batch depend on the input too.
  const C count = static_cast<C>(p.count);
  C* totals = static_cast<C*>(p.totals) + channel;
  totals[0] = p.of_batch ? total.first / count : C(0);
  totals[p.walk.channels] = p.of_batch ? total.second / count : C(0);
}

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) input_gradient_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  const Way way = Way::make<kVector>(p.walk);
  const Channels<T, kVector> c(p, way.channel);
  C shift[kVector], slope[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const std::int64_t at = p.walk.channels_last ? way.channel + i : way.channel;
    if (at >= p.walk.channels) continue;
    shift[i] = static_cast<const C*>(p.totals)[at];
    slope[i] = static_cast<const C*>(p.totals)[p.walk.channels + at];
  }
  way.for_each<kVector>(p.walk, [&](std::int64_t at) {
    C x[kVector], g[kVector];
    load_widened<kVector>(static_cast<const T*>(p.input) + at, x);
    load_widened<kVector>(static_cast<const T*>(p.grad) + at, g);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const C normalized = (x[i] - c.mean[i]) * c.factor[i];
      g[i] = c.factor[i] * c.weight[i] * (g[i] - shift[i] - normalized * slope[i]);
    }
    store_narrowed<kVector>(static_cast<T*>(p.output) + at, g);
  });
}

const void* data_of(const TensorView& view) { return view.present ? view.data : nullptr; }

/// Whether vectors along what is dense can be read and written.
bool allows_vectors(const ops::ChannelSizes& sizes, bool channels_last, std::size_t element,
                    std::initializer_list<const void*> addresses) {
  const std::int64_t vector = kVectorBytes / static_cast<std::int64_t>(element);
  return (channels_last ? sizes.channels : sizes.inner) % vector == 0 &&
         std::ranges::all_of(addresses, [](const void* p) { return is_aligned(p, kVectorBytes); });
}

/// f<T, kVector>() for vectors of 16 bytes or for single elements.
template <class F>
void dispatch_vector(DType dtype, bool vectors, const F& f) {
  dispatch_float(dtype, [&]<typename T>() {
    if (vectors) return f.template operator()<T, vector_length<T>>();
    f.template operator()<T, 1>();
  });
}

/// Without positions beside the channels both layouts are one.
bool lies_channels_last(const TensorView& view, const ops::ChannelSizes& sizes) {
  return sizes.inner == 1 || is_channels_last(view.sizes, view.strides);
}

std::int64_t blocks_of(const Walk& walk) { return walk.tiles * walk.parts; }

/// Sums over the two halves of the workspace.
void set_workspace(BatchNormParams& p, const KernelArgs& args, DType dtype) {
  p.parts = args.workspace;
  const std::int64_t bytes = 2 * p.walk.parts * p.walk.channels *
                             static_cast<std::int64_t>(size_of(accumulation_dtype(dtype)));
  p.totals = static_cast<char*>(args.workspace) + bytes;
}

std::size_t workspace_of(const TensorView& view) {
  const ops::ChannelSizes sizes(view);
  const auto element = size_of(accumulation_dtype(view.dtype));
  return static_cast<std::size_t>(2 * (kMostParts + 2) * sizes.channels) * element;
}

void run_batch_norm(const KernelArgs& args) {
  const auto& attrs = args.attributes<BatchNormAttrs>();
  const TensorView& input = args.inputs[0];
  const ops::ChannelSizes sizes(input);
  if (sizes.channels == 0) return;
  const bool last = lies_channels_last(input, sizes);
  BatchNormParams p;
  p.of_batch = ops::uses_batch_statistics(attrs.mode, args.training, sizes);
  p.count = sizes.count();
  p.input = input.data;
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
  const Stream stream = stream_of(args);
  const bool vectors = allows_vectors(sizes, last, size_of(input.dtype), {p.input, p.output});
  dispatch_vector(input.dtype, vectors, [&]<typename T, int kVector>() {
    p.walk = sums_walk(sizes, last, kVector);
    set_workspace(p, args, input.dtype);
    if (p.of_batch) {
      launch(stream, "batch_norm_moments", moments_kernel<T, kVector>, blocks_of(p.walk), kThreads,
             0, p);
    }
    launch(stream, "batch_norm_statistics", statistics_kernel<T>, ceil_div(sizes.channels, kWarp),
           kWarp * kWarp, 0, p, last ? 1 : kVector);
    p.walk = walk_of(sizes, last, kVector, std::int64_t{1} << 40, 4);
    if (p.count == 0) return;
    launch(stream, "batch_norm", normalize_kernel<T, kVector>, blocks_of(p.walk), kThreads, 0, p);
  });
}

void run_batch_norm_backward(const KernelArgs& args) {
  const auto& attrs = args.attributes<BatchNormBackwardAttrs>();
  const ops::WantedGradients wanted(args, attrs);
  const TensorView& input = args.inputs[1];
  const ops::ChannelSizes sizes(input);
  if (sizes.channels == 0) return;
  const bool last = lies_channels_last(input, sizes);
  BatchNormParams p;
  p.of_batch = ops::uses_batch_statistics(attrs.mode, args.training, sizes);
  p.count = sizes.count();
  p.grad = args.inputs[0].data;
  p.input = input.data;
  p.weight = data_of(args.inputs[2]);
  p.mean = args.inputs[3].data;
  p.factor = args.inputs[4].data;
  p.output = wanted.input ? wanted.input->data : nullptr;
  p.weight_grad = wanted.weight ? wanted.weight->data : nullptr;
  p.bias_grad = wanted.bias ? wanted.bias->data : nullptr;
  const Stream stream = stream_of(args);
  const bool vectors =
      allows_vectors(sizes, last, size_of(input.dtype), {p.input, p.grad, p.output});
  dispatch_vector(input.dtype, vectors, [&]<typename T, int kVector>() {
    p.walk = sums_walk(sizes, last, kVector);
    set_workspace(p, args, input.dtype);
    launch(stream, "batch_norm_gradient_sums", gradient_sums_kernel<T, kVector>, blocks_of(p.walk),
           kThreads, 0, p);
    launch(stream, "batch_norm_gradient_totals", gradient_totals_kernel<T>,
           ceil_div(sizes.channels, kWarp), kWarp * kWarp, 0, p);
    if (p.output == nullptr || p.count == 0) return;
    p.walk = walk_of(sizes, last, kVector, std::int64_t{1} << 40, 4);
    launch(stream, "batch_norm_input_gradient", input_gradient_kernel<T, kVector>,
           blocks_of(p.walk), kThreads, 0, p);
  });
}

}  // namespace

void register_batch_norm_kernels() {
  const auto as_operands = [](const KernelArgs&) { return ImageLayout::as_operands; };
  register_kernel(
      "batch_norm", DeviceType::cuda,
      {.name = "cuda.batch_norm",
       .run = run_batch_norm,
       .workspace_bytes = [](const KernelArgs& args) { return workspace_of(args.inputs[0]); },
       .image_layout = as_operands});
  register_kernel(
      "batch_norm_backward", DeviceType::cuda,
      {.name = "cuda.batch_norm_backward",
       .run = run_batch_norm_backward,
       .workspace_bytes = [](const KernelArgs& args) { return workspace_of(args.inputs[1]); },
       .image_layout = as_operands});
}

}  // namespace tenon::cuda
