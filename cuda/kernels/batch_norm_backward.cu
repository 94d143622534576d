// Gradients of batch_norm over row-major or channels-last (N, C, …), in three launches: sums of the gradient
// and of its product with the deviation from the mean, over each block's part; the same over blocks, which
// are the gradients of bias and weight; and the input's gradient. Input and gradient are read twice, the
// second time from their ends. Behind a relu the gradient is masked by the sign of the result: computed
// again, or, where a residual was added, read; then the first launch stores the masked gradient, the
// residual's, and the last one reads that.
#include "cuda/device/channels.cuh"
#include "cuda/kernels/batch_norm.h"
#include "cuda/kernels/register.h"
#include "tensor/calls/batch_norm_call.h"
#include "tensor/calls/wanted_gradients.h"

namespace tenon::cuda {
namespace {

// Blocks of a multiprocessor, and accesses of a thread to each operand that are under way at a time.
constexpr int kSumBlocks = 2;
constexpr int kSumLoads = 4;
constexpr int kGradientBlocks = 2;
constexpr int kGradientLoads = 4;

struct BatchNormBackwardParams {
  ChannelPlan plan;
  const void* grad = nullptr;  // of the output
  const void* input = nullptr;
  const void* result = nullptr;  // the output, or null
  const void* weight = nullptr;
  const void* bias = nullptr;  // where the sign is computed again
  const void* mean = nullptr;  // as used, in the compute type
  const void* factor = nullptr;
  void* input_grad = nullptr;
  void* residual_grad = nullptr;
  void* weight_grad = nullptr;
  void* bias_grad = nullptr;
  void* parts = nullptr;  // of the splits
  void* shift = nullptr;  // means of the gradient, and of its product with x̂ times the factor
  void* slope = nullptr;
  std::int64_t count = 0;  // values of a channel
  bool of_batch = false;
};

/// The largest number that rounds to no positive one.
template <class T>
__device__ __forceinline__ compute_type<T> rounds_to_zero() {
  if constexpr (std::is_same_v<T, Half>) return 0x1p-25F;
  if constexpr (std::is_same_v<T, BFloat16>) return 0x1p-134F;
  return compute_type<T>(0);
}

/// How a kernel knows where the relu let through: there is none, or the gradient is masked already; from the
/// forward pass computed again; from the forward result.
enum class Sign { none, of_input, of_result };

/// The gradient behind the relu, from the one before it.
template <Sign kSign, class T, int kVector, int kChannels, int kCount>
__device__ __forceinline__ void mask_gradients(
    const BatchNormBackwardParams& p, const Places<kCount>& places,
    const NormalizedChannel<compute_type<T>> (&channels)[kChannels],
    const Pack<T, kVector> (&inputs)[kCount], Pack<T, kVector> (&grads)[kCount]) {
  using C = compute_type<T>;
  if constexpr (kSign == Sign::of_result) {
    Pack<T, kVector> results[kCount];
    load_places(p.result, places, results);
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (widen(results[n].item[i]) <= C(0)) grads[n].item[i] = T{};
      }
    }
  } else if constexpr (kSign == Sign::of_input) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const C value = channels[i % kChannels](widen(inputs[n].item[i]));
        if (value <= rounds_to_zero<T>()) grads[n].item[i] = T{};
      }
    }
  }
}

/// The maps of a thread's channels.
template <class T, class Tile>
__device__ __forceinline__ void load_channels(
    const BatchNormBackwardParams& p, const Tile& tile,
    NormalizedChannel<compute_type<T>> (&channels)[Tile::kChannels]) {
  using C = compute_type<T>;
  C means[Tile::kChannels] = {}, factors[Tile::kChannels] = {}, weights[Tile::kChannels] = {};
  C biases[Tile::kChannels] = {};
  if (tile.active) {
    load_channel_values<C>(p.mean, tile.channel, C(0), means);
    load_channel_values<C>(p.factor, tile.channel, C(0), factors);
    load_channel_values<T>(p.weight, tile.channel, C(1), weights);
    load_channel_values<T>(p.bias, tile.channel, C(0), biases);
  }
#pragma unroll
  for (int i = 0; i < Tile::kChannels; ++i) {
    channels[i] = {means[i], factors[i] * weights[i], biases[i]};
  }
}

template <class T, int kVector, bool kColumns, Sign kSign>
__global__ void __launch_bounds__(kChannelThreads, kSumBlocks)
    batch_norm_sums_kernel(const BatchNormBackwardParams p) {
  using C = compute_type<T>;
  using Tile = ChannelTile<kVector, kColumns>;
  constexpr int kCount = kVector == 1 ? 2 * kSumLoads : kSumLoads;
  constexpr int kChannels = Tile::kChannels;
  const Tile tile(p.plan);
  NormalizedChannel<C> channels[kChannels];
  load_channels<T>(p, tile, channels);
  ChannelPartial<C, kChannels> total;
  tile.template for_each<kCount>([&](const Places<kCount>& places) {
    Pack<T, kVector> inputs[kCount], grads[kCount];
    load_places(p.input, places, inputs);
    load_places(p.grad, places, grads);
    mask_gradients<kSign, T>(p, places, channels, inputs, grads);
    ChannelPartial<C, kChannels> part;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      if (p.residual_grad != nullptr && places.has(n)) {
        store_pack<T, kVector>(static_cast<T*>(p.residual_grad) + places.at[n], grads[n]);
      }
      if (!places.has(n)) continue;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const C grad = widen(grads[n].item[i]);
        part.first[i % kChannels] += grad;
        part.second[i % kChannels] +=
            grad * (widen(inputs[n].item[i]) - channels[i % kChannels].mean);
      }
    }
    MergeSums{}(total, part);
  });
  store_block_partials(tile, p.parts, total, MergeSums{});
}

template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    batch_norm_vectors_kernel(const BatchNormBackwardParams p) {
  using C = compute_type<T>;
  merge_splits<C>(p.plan, p.parts, MergeSums{},
                  [&](std::int64_t channel, const ChannelPartial<C, 1>& total) {
                    const C factor = static_cast<const C*>(p.factor)[channel];
                    const C products = total.second[0] * factor;
                    if (p.weight_grad)
                      static_cast<T*>(p.weight_grad)[channel] = convert<T>(products);
                    if (p.bias_grad)
                      static_cast<T*>(p.bias_grad)[channel] = convert<T>(total.first[0]);
                    const C count = static_cast<C>(p.count);
                    static_cast<C*>(p.shift)[channel] = total.first[0] / count;
                    static_cast<C*>(p.slope)[channel] = products / count * factor;
                  });
}

template <class T, int kVector, bool kColumns, Sign kSign>
__global__ void __launch_bounds__(kChannelThreads, kGradientBlocks)
    batch_norm_backward_kernel(const BatchNormBackwardParams p) {
  using C = compute_type<T>;
  using Tile = ChannelTile<kVector, kColumns>;
  constexpr int kCount = kVector == 1 ? 2 * kGradientLoads : kGradientLoads;
  constexpr int kChannels = Tile::kChannels;
  const Tile tile(p.plan);
  if (!tile.active) return;
  NormalizedChannel<C> channels[kChannels];
  load_channels<T>(p, tile, channels);
  C shifts[kChannels] = {}, slopes[kChannels] = {};
  if (p.of_batch) {
    load_channel_values<C>(p.shift, tile.channel, C(0), shifts);
    load_channel_values<C>(p.slope, tile.channel, C(0), slopes);
  }
  tile.template for_each_backwards<kCount>([&](const Places<kCount>& places) {
    Pack<T, kVector> inputs[kCount] = {}, grads[kCount];
    if (p.of_batch || kSign == Sign::of_input) load_places(p.input, places, inputs);
    load_places(p.grad, places, grads);
    mask_gradients<kSign, T>(p, places, channels, inputs, grads);
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        constexpr int kLast = kChannels - 1;
        const int own = i < kLast ? i : kLast;
        C value = widen(grads[n].item[i]);
        // Statistics of the batch depend on the input too.
        if (p.of_batch) {
          value -= shifts[own] + (widen(inputs[n].item[i]) - channels[own].mean) * slopes[own];
        }
        grads[n].item[i] = convert<T>(value * channels[own].scale);
      }
      if (places.has(n)) {
        store_pack<T, kVector>(static_cast<T*>(p.input_grad) + places.at[n], grads[n]);
      }
    }
  });
}

const void* data_of(const TensorView& view) { return view.present ? view.data : nullptr; }
void* data_of(const TensorView* view) { return view != nullptr ? view->data : nullptr; }

template <class F>
void dispatch_sign(Sign sign, const F& f) {
  switch (sign) {
    case Sign::none: return f.template operator()<Sign::none>();
    case Sign::of_input: return f.template operator()<Sign::of_input>();
    case Sign::of_result: return f.template operator()<Sign::of_result>();
  }
}

template <class T>
void launch_gradients(Stream stream, const char* name, const ChannelExtents& extents, Sign sign,
                      BatchNormBackwardParams p) {
  using C = compute_type<T>;
  const int vector =
      vector_for<T>(extents, p.input, p.grad, p.result, p.input_grad, p.residual_grad);
  p.shift = p.parts;
  p.slope = static_cast<C*>(p.shift) + extents.channels;
  p.parts = static_cast<C*>(p.slope) + extents.channels;
  const bool sums = p.weight_grad || p.bias_grad || p.residual_grad || (p.of_batch && p.input_grad);
  if (sums) {
    p.plan = plan_channels(extents, vector, kSumBlocks);
    dispatch_channels<T>(p.plan, [&]<int kVector, bool kColumns>() {
      dispatch_sign(sign, [&]<Sign kSign>() {
        launch(stream, name, batch_norm_sums_kernel<T, kVector, kColumns, kSign>, p.plan.blocks(),
               kChannelThreads, 0, p);
      });
    });
    launch(stream, name, batch_norm_vectors_kernel<T>, ceil_div(p.plan.channels, kMergedChannels),
           kMergeThreads, 0, p);
  }
  if (p.input_grad == nullptr) return;
  if (p.residual_grad != nullptr) p.grad = p.residual_grad;
  p.plan = plan_channels(extents, vector, kGradientBlocks);
  dispatch_channels<T>(p.plan, [&]<int kVector, bool kColumns>() {
    dispatch_sign(p.residual_grad != nullptr ? Sign::none : sign, [&]<Sign kSign>() {
      launch(stream, name, batch_norm_backward_kernel<T, kVector, kColumns, kSign>, p.plan.blocks(),
             kChannelThreads, 0, p);
    });
  });
}

/// Parameters of a call whose operands after (grad, input) begin at `weight` and end with (mean, factor).
template <class A>
BatchNormBackwardParams params_of(const KernelArgs& args, std::size_t weight,
                                  std::size_t statistics) {
  const auto& attrs = args.attributes<A>();
  const ops::WantedGradients wanted(args, attrs);
  const ops::ChannelSizes sizes(args.inputs[1]);
  BatchNormBackwardParams p;
  p.count = sizes.count();
  p.of_batch = ops::uses_batch_statistics(attrs.mode, args.training, sizes);
  p.grad = args.inputs[0].data;
  p.input = args.inputs[1].data;
  p.weight = data_of(args.inputs[weight]);
  p.mean = args.inputs[statistics].data;
  p.factor = args.inputs[statistics + 1].data;
  p.input_grad = data_of(wanted.input);
  p.weight_grad = data_of(wanted.weight);
  p.bias_grad = data_of(wanted.bias);
  p.parts = args.workspace;
  return p;
}

void run(const KernelArgs& args, Sign sign, const BatchNormBackwardParams& p) {
  dispatch_float(args.inputs[1].dtype, [&]<typename T>() {
    launch_gradients<T>(stream_of(args), args.name(), ChannelExtents::of(args.inputs[1]), sign, p);
  });
}

void run_batch_norm_backward(const KernelArgs& args) {
  run(args, Sign::none, params_of<BatchNormBackwardAttrs>(args, 2, 3));
}

void run_batch_norm_relu_backward(const KernelArgs& args) {
  BatchNormBackwardParams p = params_of<BatchNormBackwardAttrs>(args, 3, 5);
  p.bias = data_of(args.inputs[4]);
  run(args, Sign::of_input, p);
}

void run_batch_norm_add_relu_backward(const KernelArgs& args) {
  BatchNormBackwardParams p = params_of<BatchNormAddBackwardAttrs>(args, 3, 4);
  p.result = args.inputs[2].data;
  if (args.attributes<BatchNormAddBackwardAttrs>().residual) {
    p.residual_grad = args.outputs.back().data;
  }
  run(args, Sign::of_result, p);
}

std::size_t sums_bytes(const KernelArgs& args) {
  return dispatch_float(args.inputs[1].dtype, [&]<typename T>() {
    return channel_workspace(ChannelExtents::of(args.inputs[1]), channel_vector<T>, kSumBlocks, 2,
                             sizeof(compute_type<T>));
  });
}

}  // namespace

void register_batch_norm_backward_kernels() {
  const auto add = [](const char* op, const char* name, void (*run)(const KernelArgs&)) {
    register_kernel(op, DeviceType::cuda,
                    {.name = name,
                     .run = run,
                     .workspace_bytes = sums_bytes,
                     .image_layout = images_as_operands});
  };
  add("batch_norm_backward", "cuda.batch_norm_backward", run_batch_norm_backward);
  add("batch_norm_relu_backward", "cuda.batch_norm_relu_backward", run_batch_norm_relu_backward);
  add("batch_norm_add_relu_backward", "cuda.batch_norm_add_relu_backward",
      run_batch_norm_add_relu_backward);
}

}  // namespace tenon::cuda
