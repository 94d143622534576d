// One pass over a parameter, its gradient and its state. Blocks are widened to the compute type, so
// the loop over a block vectorizes for every dtype. An output may share memory with the operand that
// it replaces: an element is written after it was read.
#include "tensor/cpu/optimizer_steps.h"

#include "tensor/cpu/elementwise.h"
#include "tensor/detail/optimizer_operands.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

/// Elements of one task: a multiple of kBlock.
constexpr std::int64_t kGrain = 16384;

/// The one element of a scalar operand, or `absent`.
double read_scalar(const TensorView& view, double absent) {
  double value = absent;
  if (!view.present) return value;
  dispatch_float(view.dtype, [&]<typename T>() {
    value = static_cast<double>(static_cast<compute_type<T>>(*view.as<const T>()));
  });
  return value;
}

template <class T>
RowReader<T> reader(const TensorView& view) {
  return {view.as<const char>(), static_cast<std::int64_t>(sizeof(T)), view.numel()};
}
template <class T>
RowWriter<T> writer(const TensorView& view) {
  return {view.as<char>(), static_cast<std::int64_t>(sizeof(T))};
}

template <class P, class G>
void run_adam(const KernelArgs& args, const AdamUpdate<compute_type<P>>& update) {
  using C = compute_type<P>;
  parallel_ranges(args.inputs[0].numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    auto old_param = reader<P>(args.inputs[kAdamParam]);
    auto gradient = reader<G>(args.inputs[kAdamGrad]);
    auto old_avg = reader<P>(args.inputs[kAdamAvg]);
    auto old_avg_sq = reader<P>(args.inputs[kAdamAvgSq]);
    auto param = writer<P>(args.outputs[0]);
    auto avg = writer<P>(args.outputs[1]);
    auto avg_sq = writer<P>(args.outputs[2]);
    for (std::int64_t first = begin; first < end; first += kBlock) {
      const std::int64_t n = std::min(kBlock, end - first);
      const C* p = old_param.block(first, n);
      const compute_type<G>* g = gradient.block(first, n);
      const C* m = old_avg.block(first, n);
      const C* v = old_avg_sq.block(first, n);
      C* new_p = param.block(first);
      C* new_m = avg.block(first);
      C* new_v = avg_sq.block(first);
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) {
        C value = p[i], mean = m[i], square = v[i];
        update.apply(value, static_cast<C>(g[i]), mean, square);
        new_p[i] = value;
        new_m[i] = mean;
        new_v[i] = square;
      }
      param.finish(first, n);
      avg.finish(first, n);
      avg_sq.finish(first, n);
    }
  });
}

template <class P, class G>
void run_sgd(const KernelArgs& args, const SgdUpdate<compute_type<P>>& update) {
  using C = compute_type<P>;
  parallel_ranges(args.inputs[0].numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    auto old_param = reader<P>(args.inputs[kSgdParam]);
    auto gradient = reader<G>(args.inputs[kSgdGrad]);
    auto param = writer<P>(args.outputs[0]);
    for (std::int64_t first = begin; first < end; first += kBlock) {
      const std::int64_t n = std::min(kBlock, end - first);
      const C* p = old_param.block(first, n);
      const compute_type<G>* g = gradient.block(first, n);
      C* new_p = param.block(first);
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) {
        C value = p[i];
        update.apply(value, static_cast<C>(g[i]));
        new_p[i] = value;
      }
      param.finish(first, n);
    }
  });
}

template <class P, class G>
void run_momentum(const KernelArgs& args, const SgdUpdate<compute_type<P>>& update) {
  using C = compute_type<P>;
  parallel_ranges(args.inputs[0].numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    auto old_param = reader<P>(args.inputs[kSgdParam]);
    auto gradient = reader<G>(args.inputs[kSgdGrad]);
    auto old_buffer = reader<P>(args.inputs[kSgdBuffer]);
    auto param = writer<P>(args.outputs[0]);
    auto buffer = writer<P>(args.outputs[1]);
    for (std::int64_t first = begin; first < end; first += kBlock) {
      const std::int64_t n = std::min(kBlock, end - first);
      const C* p = old_param.block(first, n);
      const compute_type<G>* g = gradient.block(first, n);
      const C* b = old_buffer.block(first, n);
      C* new_p = param.block(first);
      C* new_b = buffer.block(first);
#pragma GCC ivdep
      for (std::int64_t i = 0; i < n; ++i) {
        C value = p[i], velocity = b[i];
        update.apply(value, static_cast<C>(g[i]), velocity);
        new_p[i] = value;
        new_b[i] = velocity;
      }
      param.finish(first, n);
      buffer.finish(first, n);
    }
  });
}

}  // namespace

void adam_step(const KernelArgs& args) {
  const AdamSettings settings = adam_settings(args.attributes<AdamStepAttrs>());
  const double step = read_scalar(args.inputs[kAdamStep], 1);
  const double lr = read_scalar(args.inputs[kAdamLr], 0);
  const double scale = read_scalar(args.inputs[kAdamScale], 1);
  dispatch_update(
      args.inputs[kAdamParam].dtype, args.inputs[kAdamGrad].dtype, [&]<typename P, typename G>() {
        run_adam<P, G>(args, AdamUpdate<compute_type<P>>::make(settings, step, lr, scale));
      });
}

void sgd_step(const KernelArgs& args) {
  const SgdSettings settings = sgd_settings(args.attributes<SgdStepAttrs>());
  const double step = read_scalar(args.inputs[kSgdStep], 1);
  const double lr = read_scalar(args.inputs[kSgdLr], 0);
  const double scale = read_scalar(args.inputs[kSgdScale], 1);
  dispatch_update(args.inputs[kSgdParam].dtype, args.inputs[kSgdGrad].dtype,
                  [&]<typename P, typename G>() {
                    const auto update = SgdUpdate<compute_type<P>>::make(settings, step, lr, scale);
                    args.inputs[kSgdBuffer].present ? run_momentum<P, G>(args, update)
                                                    : run_sgd<P, G>(args, update);
                  });
}

}  // namespace tenon::cpu
