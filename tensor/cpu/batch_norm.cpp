// Batch normalization (Ioffe, Szegedy, 2015): a channel is one task, its sums run over samples in order,
// and its variance is that of the deviations from the mean, which cancels nothing.
#include "tensor/cpu/batch_norm.h"

#include <cmath>
#include <optional>
#include <type_traits>

#include "tensor/calls/batch_norm_call.h"
#include "tensor/calls/wanted_gradients.h"
#include "tensor/cpu/rows.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

using ops::ChannelSizes;
using ops::WantedGradients;

/// The rows of a channel, `inner` values of each sample, in the compute type.
template <class T>
struct Channel {
  using C = compute_type<T>;
  ChannelSizes sizes;
  std::int64_t channel;

  std::int64_t offset(std::int64_t sample) const {
    return (sample * sizes.channels + channel) * sizes.inner;
  }
  void load(const TensorView& view, std::int64_t sample, C* row) const {
    load_row(view.as<const T>() + offset(sample), 1, sizes.inner, row);
  }
  void store(const C* row, std::int64_t sample, const TensorView& view) const {
    store_row(row, sizes.inner, view.as<T>() + offset(sample), 1);
  }
};

struct Statistics {
  double mean = 0;
  double variance = 0;
};

template <class T>
Statistics batch_statistics(const Channel<T>& channel, const TensorView& input,
                            compute_type<T>* row) {
  const auto count = static_cast<double>(channel.sizes.count());
  Statistics result;
  for (std::int64_t n = 0; n < channel.sizes.samples; ++n) {
    channel.load(input, n, row);
    result.mean += row_sum(row, channel.sizes.inner);
  }
  result.mean /= count;
  const auto mean = static_cast<compute_type<T>>(result.mean);
  for (std::int64_t n = 0; n < channel.sizes.samples; ++n) {
    channel.load(input, n, row);
    result.variance += center_row(row, channel.sizes.inner, mean);
  }
  result.variance /= count;
  return result;
}

/// Element `channel` of a vector, or `absent` where there is none.
template <class T>
double element(const TensorView& vector, std::int64_t channel, double absent) {
  if (!vector.present) return absent;
  return static_cast<double>(static_cast<compute_type<T>>(vector.as<const T>()[channel]));
}

template <class T>
void store_element(const TensorView& vector, std::int64_t channel, double value) {
  vector.as<T>()[channel] = static_cast<T>(static_cast<compute_type<T>>(value));
}

/// Running statistics moved towards the batch's, or as they were.
template <class T>
void store_running(const KernelArgs& args, const Channel<T>& channel,
                   const std::optional<Statistics>& batch) {
  if (args.outputs.size() < 5) return;
  const double momentum = args.attributes<BatchNormAttrs>().momentum;
  const auto count = static_cast<double>(channel.sizes.count());
  double mean = element<T>(args.inputs[1], channel.channel, 0);
  double variance = element<T>(args.inputs[2], channel.channel, 1);
  if (batch) {
    mean += momentum * (batch->mean - mean);
    variance += momentum * (batch->variance * count / (count - 1) - variance);
  }
  store_element<T>(args.outputs[3], channel.channel, mean);
  store_element<T>(args.outputs[4], channel.channel, variance);
}

template <class T>
void run_channel(const KernelArgs& args, const Channel<T>& channel, bool of_batch) {
  using C = compute_type<T>;
  thread_local Scratch scratch;
  const ChannelSizes& sizes = channel.sizes;
  C* row = scratch.get<C>(sizes.inner);
  const std::int64_t c = channel.channel;
  std::optional<Statistics> batch;
  if (of_batch) batch = batch_statistics(channel, args.inputs[0], row);
  const Statistics used =
      batch ? *batch
            : Statistics{element<T>(args.inputs[1], c, 0), element<T>(args.inputs[2], c, 1)};
  const auto mean = static_cast<C>(used.mean);
  const auto factor =
      static_cast<C>(1 / std::sqrt(used.variance + args.attributes<BatchNormAttrs>().eps));
  const auto weight = static_cast<C>(element<T>(args.inputs[3], c, 1));
  const auto bias = static_cast<C>(element<T>(args.inputs[4], c, 0));
  for (std::int64_t n = 0; n < sizes.samples; ++n) {
    const auto normalize = [&](const C* x, C* y) {
      for (std::int64_t i = 0; i < sizes.inner; ++i) y[i] = (x[i] - mean) * factor * weight + bias;
    };
    if constexpr (std::is_same_v<T, C>) {
      normalize(args.inputs[0].as<const T>() + channel.offset(n),
                args.outputs[0].as<T>() + channel.offset(n));
    } else {
      channel.load(args.inputs[0], n, row);
      normalize(row, row);
      channel.store(row, n, args.outputs[0]);
    }
  }
  args.outputs[1].as<C>()[c] = mean;
  args.outputs[2].as<C>()[c] = factor;
  store_running(args, channel, batch);
}

template <class T>
void run_channel_backward(const KernelArgs& args, const Channel<T>& channel, bool of_batch,
                          const WantedGradients& gradients) {
  using C = compute_type<T>;
  thread_local Scratch grad_scratch, input_scratch;
  const ChannelSizes& sizes = channel.sizes;
  C* g = grad_scratch.get<C>(sizes.inner);
  C* x = input_scratch.get<C>(sizes.inner);
  const std::int64_t c = channel.channel;
  const C mean = args.inputs[3].as<const C>()[c];
  const C factor = args.inputs[4].as<const C>()[c];
  const auto load = [&](std::int64_t n) {
    channel.load(args.inputs[0], n, g);
    channel.load(args.inputs[1], n, x);
    for (std::int64_t i = 0; i < sizes.inner; ++i) x[i] = (x[i] - mean) * factor;
  };
  double sum = 0;
  double products = 0;
  for (std::int64_t n = 0; n < sizes.samples; ++n) {
    load(n);
    sum += row_sum(g, sizes.inner);
    products += row_dot(g, x, sizes.inner);
  }
  if (gradients.weight) store_element<T>(*gradients.weight, c, products);
  if (gradients.bias) store_element<T>(*gradients.bias, c, sum);
  if (!gradients.input) return;
  // Statistics of the batch depend on the input too.
  const auto count = static_cast<double>(sizes.count());
  const auto shift = static_cast<C>(of_batch ? sum / count : 0);
  const auto slope = static_cast<C>(of_batch ? products / count : 0);
  const C scale = factor * static_cast<C>(element<T>(args.inputs[2], c, 1));
  for (std::int64_t n = 0; n < sizes.samples; ++n) {
    load(n);
    for (std::int64_t i = 0; i < sizes.inner; ++i) g[i] = scale * (g[i] - shift - x[i] * slope);
    channel.store(g, n, *gradients.input);
  }
}

}  // namespace

void batch_norm(const KernelArgs& args) {
  const ChannelSizes sizes(args.inputs[0]);
  const bool of_batch =
      ops::uses_batch_statistics(args.attributes<BatchNormAttrs>().mode, args.training, sizes);
  dispatch_float(args.inputs[0].dtype, [&]<typename T>() {
    parallel_for(sizes.channels, [&](std::int64_t c) {
      run_channel<T>(args, {sizes, c}, of_batch);
    });
  });
}

void batch_norm_backward(const KernelArgs& args) {
  const ChannelSizes sizes(args.inputs[1]);
  const auto& attrs = args.attributes<BatchNormBackwardAttrs>();
  const WantedGradients gradients(args, attrs);
  const bool of_batch = ops::uses_batch_statistics(attrs.mode, args.training, sizes);
  dispatch_float(args.inputs[1].dtype, [&]<typename T>() {
    parallel_for(sizes.channels, [&](std::int64_t c) {
      run_channel_backward<T>(args, {sizes, c}, of_batch, gradients);
    });
  });
}

}  // namespace tenon::cpu
