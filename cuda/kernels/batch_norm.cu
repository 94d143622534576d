// batch_norm over row-major or channels-last (N, C, …), alone or with an added residual and a relu. In training
// three launches: means and squared deviations of each block's part, merged as Chan et al. do; their merging
// over blocks, which also moves the running statistics; and the result. The input is read twice, the second
// time from its end, part of which is in the cache still. In evaluation one launch, which reads it once.
#include "cuda/device/channels.cuh"
#include "cuda/kernels/batch_norm.h"
#include "cuda/kernels/register.h"
#include "tensor/calls/batch_norm_call.h"

namespace tenon::cuda {
namespace {

// Blocks of a multiprocessor, and accesses of a thread that are under way at a time.
constexpr int kMomentBlocks = 2;
constexpr int kMomentLoads = 8;
template <bool kAdds>
constexpr int result_blocks = kAdds ? 2 : 3;
constexpr int kResultLoads = 4;

struct BatchNormParams {
  ChannelPlan plan;
  const void* input = nullptr;
  const void* residual = nullptr;
  const void* running_mean = nullptr;
  const void* running_var = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  void* mean = nullptr;    // as used, in the compute type
  void* factor = nullptr;  // 1/√(var + eps) as used
  void* output = nullptr;
  void* new_mean = nullptr;
  void* new_var = nullptr;
  void* parts = nullptr;   // of the splits
  std::int64_t count = 0;  // values of a channel
  bool of_batch = false;
  BatchNormTail tail = BatchNormTail::none;
  double momentum = 0;
  double eps = 0;
};

/// The moments of kCount accesses, merged into those that went before.
template <class T, int kVector, bool kColumns, bool kWhole, int kCount>
__device__ __forceinline__ void add_moments(
    const Pack<T, kVector> (&packs)[kCount], const Places<kCount>& places,
    ChannelPartial<compute_type<T>, kColumns ? kVector : 1>& total) {
  using C = compute_type<T>;
  constexpr int kValues = kColumns ? 1 : kVector;  // of a channel, of each access
  ChannelPartial<C, kColumns ? kVector : 1> part;
  part.count = static_cast<C>((kWhole ? kCount : __popc(places.valid)) * kValues);
  const C share = C(1) / part.count;
  C sums[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    sums[i] = widen(packs[0].item[i]);
#pragma unroll
    for (int n = 1; n < kCount; ++n) sums[i] += widen(packs[n].item[i]);
    if constexpr (kColumns) part.first[i] = sums[i] * share;
  }
  if constexpr (!kColumns) {
#pragma unroll
    for (int i = 1; i < kVector; ++i) sums[0] += sums[i];
    part.first[0] = sums[0] * share;
  }
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      constexpr int kLast = kColumns ? kVector - 1 : 0;
      const int channel = i < kLast ? i : kLast;
      const C deviation = widen(packs[n].item[i]) - part.first[channel];
      if (kWhole || places.has(n)) part.second[channel] += deviation * deviation;
    }
  }
  MergeMoments{}(total, part);
}

template <class T, int kVector, bool kColumns>
__global__ void __launch_bounds__(kChannelThreads, kMomentBlocks)
    batch_moments_kernel(const BatchNormParams p) {
  using Tile = ChannelTile<kVector, kColumns>;
  constexpr int kCount = kVector == 1 ? 2 * kMomentLoads : kMomentLoads;
  const Tile tile(p.plan);
  ChannelPartial<compute_type<T>, Tile::kChannels> total;
  tile.template for_each<kCount>([&](const Places<kCount>& places) {
    Pack<T, kVector> packs[kCount];
    load_places(p.input, places, packs);
    if (places.valid == Places<kCount>::kAll) {
      add_moments<T, kVector, kColumns, true>(packs, places, total);
    } else if (places.valid != 0) {
      add_moments<T, kVector, kColumns, false>(packs, places, total);
    }
  });
  store_block_partials(tile, p.parts, total, MergeMoments{});
}

template <class T>
__device__ __forceinline__ void store_statistics(const BatchNormParams& p, std::int64_t channel,
                                                 compute_type<T> mean, compute_type<T> variance) {
  using C = compute_type<T>;
  static_cast<C*>(p.mean)[channel] = mean;
  static_cast<C*>(p.factor)[channel] = C(1) / sqrt_of(variance + static_cast<C>(p.eps));
  if (p.new_mean == nullptr) return;
  C moved_mean = channel_value<T>(p.running_mean, channel, C(0));
  C moved_var = channel_value<T>(p.running_var, channel, C(1));
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
__global__ void __launch_bounds__(kMergeThreads) batch_statistics_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  merge_splits<C>(p.plan, p.parts, MergeMoments{},
                  [&](std::int64_t channel, const ChannelPartial<C, 1>& total) {
                    store_statistics<T>(p, channel, total.first[0],
                                        total.second[0] / static_cast<C>(p.count));
                  });
}

template <class T, int kVector, bool kColumns, bool kAdds>
__global__ void __launch_bounds__(kChannelThreads, result_blocks<kAdds>)
    batch_norm_kernel(const BatchNormParams p) {
  using C = compute_type<T>;
  using Tile = ChannelTile<kVector, kColumns>;
  constexpr int kCount = kVector == 1 ? 2 * kResultLoads : kResultLoads;
  constexpr int kChannels = Tile::kChannels;
  const Tile tile(p.plan);
  if (!tile.active) return;
  C means[kChannels], factors[kChannels], weights[kChannels], biases[kChannels];
  load_channel_values<T>(p.weight, tile.channel, C(1), weights);
  load_channel_values<T>(p.bias, tile.channel, C(0), biases);
  if (p.of_batch) {
    load_channel_values<C>(p.mean, tile.channel, C(0), means);
    load_channel_values<C>(p.factor, tile.channel, C(0), factors);
  } else {
    C variances[kChannels];
    load_channel_values<T>(p.running_mean, tile.channel, C(0), means);
    load_channel_values<T>(p.running_var, tile.channel, C(1), variances);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      factors[i] = C(1) / sqrt_of(variances[i] + static_cast<C>(p.eps));
      if (tile.stores_channels()) {
        store_statistics<T>(p, tile.channel + i, means[i], variances[i]);
      }
    }
  }
  NormalizedChannel<C> channels[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    channels[i] = {means[i], factors[i] * weights[i], biases[i]};
  }
  const bool has_relu = p.tail != BatchNormTail::none;
  tile.template for_each_backwards<kCount>([&](const Places<kCount>& places) {
    Pack<T, kVector> packs[kCount], residuals[kAdds ? kCount : 1];
    load_places(p.input, places, packs);
    if constexpr (kAdds) load_places(p.residual, places, residuals);
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        C value = channels[kColumns ? i : 0](widen(packs[n].item[i]));
        if constexpr (kAdds) value += widen(residuals[n].item[i]);
        if (has_relu) value = nan_max(value, C(0));
        packs[n].item[i] = convert<T>(value);
      }
      if (places.has(n)) store_pack<T, kVector>(static_cast<T*>(p.output) + places.at[n], packs[n]);
    }
  });
}

const void* data_of(const TensorView& view) { return view.present ? view.data : nullptr; }

template <class T>
void launch_batch_norm(Stream stream, const char* name, const ChannelExtents& extents,
                       BatchNormParams p) {
  const int vector = vector_for<T>(extents, p.input, p.residual, p.output);
  if (p.of_batch) {
    p.plan = plan_channels(extents, vector, kMomentBlocks);
    dispatch_channels<T>(p.plan, [&]<int kVector, bool kColumns>() {
      launch(stream, name, batch_moments_kernel<T, kVector, kColumns>, p.plan.blocks(),
             kChannelThreads, 0, p);
    });
    launch(stream, name, batch_statistics_kernel<T>, ceil_div(p.plan.channels, kMergedChannels),
           kMergeThreads, 0, p);
  }
  const bool adds = p.residual != nullptr;
  p.plan = plan_channels(extents, vector, adds ? result_blocks<true> : result_blocks<false>);
  dispatch_channels<T>(p.plan, [&]<int kVector, bool kColumns>() {
    launch(stream, name,
           adds ? batch_norm_kernel<T, kVector, kColumns, true>
                : batch_norm_kernel<T, kVector, kColumns, false>,
           p.plan.blocks(), kChannelThreads, 0, p);
  });
}

void run_with_tail(const KernelArgs& args, BatchNormTail tail) {
  const auto& attrs = args.attributes<BatchNormAttrs>();
  const ops::ChannelSizes sizes(args.inputs[0]);
  BatchNormParams p;
  p.count = sizes.count();
  p.of_batch = ops::uses_batch_statistics(attrs.mode, args.training, sizes);
  p.tail = tail;
  p.input = args.inputs[0].data;
  p.running_mean = data_of(args.inputs[1]);
  p.running_var = data_of(args.inputs[2]);
  p.weight = data_of(args.inputs[3]);
  p.bias = data_of(args.inputs[4]);
  if (tail == BatchNormTail::add_relu) p.residual = args.inputs[5].data;
  p.output = args.outputs[0].data;
  p.mean = args.outputs[1].data;
  p.factor = args.outputs[2].data;
  if (args.outputs.size() > 3) {
    p.new_mean = args.outputs[3].data;
    p.new_var = args.outputs[4].data;
  }
  p.parts = args.workspace;
  p.momentum = attrs.momentum;
  p.eps = attrs.eps;
  dispatch_float(args.inputs[0].dtype, [&]<typename T>() {
    launch_batch_norm<T>(stream_of(args), args.name(), ChannelExtents::of(args.inputs[0]), p);
  });
}

void run_batch_norm(const KernelArgs& args) { run_with_tail(args, BatchNormTail::none); }
void run_batch_norm_relu(const KernelArgs& args) { run_with_tail(args, BatchNormTail::relu); }
void run_batch_norm_add_relu(const KernelArgs& args) {
  run_with_tail(args, BatchNormTail::add_relu);
}

std::size_t moments_bytes(const KernelArgs& args) {
  const auto& attrs = args.attributes<BatchNormAttrs>();
  if (!ops::uses_batch_statistics(attrs.mode, args.training)) return 0;
  return dispatch_float(args.inputs[0].dtype, [&]<typename T>() {
    return channel_workspace(ChannelExtents::of(args.inputs[0]), channel_vector<T>, kMomentBlocks,
                             0, sizeof(compute_type<T>));
  });
}

}  // namespace

void register_batch_norm_kernels() {
  const auto add = [](const char* op, const char* name, void (*run)(const KernelArgs&)) {
    register_kernel(op, DeviceType::cuda,
                    {.name = name,
                     .run = run,
                     .workspace_bytes = moments_bytes,
                     .image_layout = images_as_operands});
  };
  add("batch_norm", "cuda.batch_norm", run_batch_norm);
  add("batch_norm_relu", "cuda.batch_norm_relu", run_batch_norm_relu);
  add("batch_norm_add_relu", "cuda.batch_norm_add_relu", run_batch_norm_add_relu);
  register_batch_norm_backward_kernels();
}

}  // namespace tenon::cuda
