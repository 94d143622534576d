// cross_entropy of contiguous logits (rows, classes), and its gradient. A group of threads reads a row once
// for its maximum and Σ exp(x - maximum); the mean or sum over rows is taken by one block, in a fixed
// order. A target that is no class gives NaN: a kernel cannot throw.
#include <limits>

#include "cuda/context.h"
#include "cuda/device/rows.cuh"
#include "cuda/device/running_sum.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kTotalThreads = 512;

struct LossParams {
  const void* logits = nullptr;
  const std::int64_t* targets = nullptr;
  void* losses = nullptr;           // (rows)
  const void* grad = nullptr;       // of the loss: () or (rows)
  void* logits_grad = nullptr;      // (rows, classes)
  const double* counted = nullptr;  // targets that are not ignored; null: not divided by
  std::int64_t rows = 0;
  std::int64_t classes = 0;
  std::int64_t ignore_index = 0;
  double smoothing = 0;
  bool grad_per_row = false;
  int lanes = 1;
};

/// The statistics of the group's row; every thread of the block must call it.
template <class T>
__device__ __forceinline__ RunningSum<compute_type<T>> row_sum(const LossParams& p,
                                                               const RowGroup& group,
                                                               compute_type<T>* scratch) {
  const T* x = static_cast<const T*>(p.logits) + group.row * p.classes;
  RunningSum<compute_type<T>> own;
#pragma unroll 4
  for (std::int64_t i = group.lane; i < p.classes; i += p.lanes) own.add(widen(x[i]));
  return own.combined(p.lanes, scratch);
}

/// losses[row] in type Out: -(1-s)·log p[target] - s·mean(log p), 0 where ignored.
template <class T, class Out>
__global__ void __launch_bounds__(kMaxRowThreads) row_losses_kernel(const LossParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const T* x = static_cast<const T*>(p.logits) + group.row * p.classes;
  const RunningSum<C> total = row_sum<T>(p, group, scratch);
  C mean = C(0);
  if (p.smoothing > 0) {
    for (std::int64_t i = group.lane; i < p.classes; i += p.lanes) {
      mean += widen(x[i]) - total.maximum;
    }
    mean = group_reduce(mean, p.lanes, scratch, Sum{}) / static_cast<C>(p.classes);
  }
  if (!group.active || group.lane != 0) return;
  const std::int64_t target = p.targets[group.row];
  C loss = C(0);
  if (target < 0 || target >= p.classes) {
    loss = std::numeric_limits<C>::quiet_NaN();
  } else {
    const C log_sum = log_of(total.sum);
    const C smoothing = static_cast<C>(p.smoothing);
    loss = log_sum - (widen(x[target]) - total.maximum);
    if (p.smoothing > 0) loss = (C(1) - smoothing) * loss + smoothing * (log_sum - mean);
  }
  if (target == p.ignore_index) loss = C(0);
  static_cast<Out*>(p.losses)[group.row] = convert<Out>(loss);
}

/// The sum over rows by one block, divided by the number of counted rows if `mean`.
template <class C, class T>
__global__ void __launch_bounds__(kTotalThreads)
    total_loss_kernel(const C* losses, const std::int64_t* targets, std::int64_t rows,
                      std::int64_t ignore_index, bool mean, T* output) {
  __shared__ double scratch[kWarp];
  double sum = 0;
  double counted = 0;
  for (std::int64_t row = threadIdx.x; row < rows; row += kTotalThreads) {
    sum += static_cast<double>(losses[row]);
    counted += targets[row] != ignore_index ? 1 : 0;
  }
  sum = group_reduce(sum, kTotalThreads, scratch, Sum{});
  counted = group_reduce(counted, kTotalThreads, scratch, Sum{});
  if (threadIdx.x == 0) *output = convert<T>(static_cast<C>(mean ? sum / counted : sum));
}

__global__ void __launch_bounds__(kTotalThreads)
    count_targets_kernel(const std::int64_t* targets, std::int64_t rows, std::int64_t ignore_index,
                         double* counted) {
  __shared__ double scratch[kWarp];
  double count = 0;
  for (std::int64_t row = threadIdx.x; row < rows; row += kTotalThreads) {
    count += targets[row] != ignore_index ? 1 : 0;
  }
  count = group_reduce(count, kTotalThreads, scratch, Sum{});
  if (threadIdx.x == 0) *counted = count;
}

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads) row_gradients_kernel(const LossParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const T* x = static_cast<const T*>(p.logits) + group.row * p.classes;
  const RunningSum<C> total = row_sum<T>(p, group, scratch);
  if (!group.active) return;
  T* target_row = static_cast<T*>(p.logits_grad) + group.row * p.classes;
  const std::int64_t target = p.targets[group.row];
  if (target == p.ignore_index) {
    for (std::int64_t i = group.lane; i < p.classes; i += p.lanes) target_row[i] = convert<T>(C(0));
    return;
  }
  C factor = widen(static_cast<const T*>(p.grad)[p.grad_per_row ? group.row : 0]);
  if (p.counted != nullptr) factor = static_cast<C>(static_cast<double>(factor) / *p.counted);
  if (target < 0 || target >= p.classes) factor = std::numeric_limits<C>::quiet_NaN();
  const C scale = C(1) / total.sum;
  const C share = static_cast<C>(p.smoothing / static_cast<double>(p.classes));
  const C peak = static_cast<C>(1 - p.smoothing);
#pragma unroll 4
  for (std::int64_t i = group.lane; i < p.classes; i += p.lanes) {
    const C probability = exp_of(widen(x[i]) - total.maximum) * scale;
    const C wanted = share + (i == target ? peak : C(0));
    target_row[i] = convert<T>(factor * (probability - wanted));
  }
}

LossParams params_of(const KernelArgs& args, const TensorView& logits, const TensorView& targets) {
  const auto& attrs = args.attributes<CrossEntropyAttrs>();
  LossParams p;
  p.logits = logits.data;
  p.targets = targets.as<const std::int64_t>();
  p.rows = logits.sizes[0];
  p.classes = logits.sizes[1];
  p.ignore_index = attrs.ignore_index;
  p.smoothing = attrs.label_smoothing;
  return p;
}

/// Rows of no classes still need a thread.
template <class T>
RowPlan plan_of(const LossParams& p) {
  return plan_rows(p.rows, p.classes > 0 ? p.classes : 1, row_chunks<T>);
}

void run_cross_entropy(const KernelArgs& args) {
  const Stream stream = stream_of(args);
  const auto& attrs = args.attributes<CrossEntropyAttrs>();
  LossParams p = params_of(args, args.inputs[0], args.inputs[1]);
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const bool per_row = attrs.reduction == Reduction::none;
    const ScratchMemory losses(stream.device,
                               per_row ? 0 : static_cast<std::size_t>(p.rows) * sizeof(C));
    p.losses = per_row ? args.outputs[0].data : losses.data();
    if (p.rows > 0) {
      const RowPlan plan = plan_of<T>(p);
      p.lanes = plan.lanes;
      launch(stream, "cross_entropy", per_row ? row_losses_kernel<T, T> : row_losses_kernel<T, C>,
             plan.blocks, plan.threads, 0, p);
    }
    if (per_row) return;
    launch(stream, "cross_entropy", total_loss_kernel<C, T>, 1, kTotalThreads, 0,
           static_cast<const C*>(losses.data()), p.targets, p.rows, p.ignore_index,
           attrs.reduction == Reduction::mean, args.outputs[0].as<T>());
  });
}

void run_cross_entropy_backward(const KernelArgs& args) {
  const Stream stream = stream_of(args);
  const auto& attrs = args.attributes<CrossEntropyAttrs>();
  LossParams p = params_of(args, args.inputs[1], args.inputs[2]);
  if (args.outputs[0].numel() == 0) return;
  p.grad = args.inputs[0].data;
  p.logits_grad = args.outputs[0].data;
  p.grad_per_row = attrs.reduction == Reduction::none;
  const bool mean = attrs.reduction == Reduction::mean;
  const ScratchMemory counted(stream.device, mean ? sizeof(double) : 0);
  if (mean) {
    p.counted = static_cast<const double*>(counted.data());
    launch(stream, "cross_entropy_backward", count_targets_kernel, 1, kTotalThreads, 0, p.targets,
           p.rows, p.ignore_index, static_cast<double*>(counted.data()));
  }
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    const RowPlan plan = plan_of<T>(p);
    p.lanes = plan.lanes;
    launch(stream, "cross_entropy_backward", row_gradients_kernel<T>, plan.blocks, plan.threads, 0,
           p);
  });
}

}  // namespace

void register_cross_entropy_kernels() {
  register_kernel("cross_entropy", DeviceType::cuda,
                  {.name = "cuda.cross_entropy", .run = run_cross_entropy});
  register_kernel("cross_entropy_backward", DeviceType::cuda,
                  {.name = "cuda.cross_entropy_backward", .run = run_cross_entropy_backward});
}

}  // namespace tenon::cuda
