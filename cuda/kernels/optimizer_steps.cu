// adam_step and sgd_step on contiguous operands: one pass over a parameter, its gradient and its
// state. A thread serves 4 neighbouring elements, by vector accesses where everything is aligned. The
// numbers that all elements share (bias corrections, step size) are computed once a block, in double,
// from step, lr and grad_scale in device memory, so that a captured launch can be replayed.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/detail/optimizer_operands.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;

/// A floating operand of one element, or the number that stands for an absent one.
struct ScalarOperand {
  const void* data = nullptr;
  DType dtype = DType::float32;
  double absent = 0;
};

ScalarOperand scalar_operand(const TensorView& view, double absent) {
  return {view.present ? view.data : nullptr, view.dtype, absent};
}

__device__ __forceinline__ double read_scalar(const ScalarOperand& s) {
  if (s.data == nullptr) return s.absent;
  switch (s.dtype) {
    case DType::float64: return *static_cast<const double*>(s.data);
    case DType::float16: return widen(*static_cast<const Half*>(s.data));
    case DType::bfloat16: return widen(*static_cast<const BFloat16*>(s.data));
    default: return *static_cast<const float*>(s.data);
  }
}

/// Operands of one update; kStates state tensors follow the parameter in `before` and `after`.
template <int kStates, class Settings>
struct UpdateParams {
  const void* before[kStates + 1] = {};
  void* after[kStates + 1] = {};
  const void* grad = nullptr;
  std::int64_t numel = 0;
  bool vectors = false;
  ScalarOperand step, lr, grad_scale;
  Settings settings;
};

/// `count` elements from `first` on; with vectors, kPerThread of them.
template <class T, class C>
__device__ __forceinline__ void load_elements(const void* source, std::int64_t first, int count,
                                              bool vectors, C (&values)[kPerThread]) {
  const T* data = static_cast<const T*>(source) + first;
  if (vectors) {
    compute_type<T> wide[kPerThread];
    load_widened(data, wide);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) values[i] = static_cast<C>(wide[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    values[i] = i < count ? static_cast<C>(widen(data[i])) : C(0);
}

template <class T>
__device__ __forceinline__ void store_elements(void* target, std::int64_t first, int count,
                                               bool vectors,
                                               const compute_type<T> (&values)[kPerThread]) {
  T* data = static_cast<T*>(target) + first;
  if (vectors) return store_narrowed(data, values);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (i < count) data[i] = convert<T>(values[i]);
  }
}

template <class P, class G, class Update, int kStates, class Settings>
__global__ void __launch_bounds__(kThreads) update_kernel(const UpdateParams<kStates, Settings> p) {
  using C = compute_type<P>;
  __shared__ Update shared_update;
  if (threadIdx.x == 0) {
    shared_update =
        Update::make(p.settings, read_scalar(p.step), read_scalar(p.lr), read_scalar(p.grad_scale));
  }
  __syncthreads();
  const Update update = shared_update;
  const std::int64_t first = (block_index() * kThreads + threadIdx.x) * kPerThread;
  if (first >= p.numel) return;
  const int count = p.numel - first < kPerThread ? static_cast<int>(p.numel - first) : kPerThread;
  const bool vectors = p.vectors && count == kPerThread;
  C grad[kPerThread];
  C values[kStates + 1][kPerThread];
  load_elements<G>(p.grad, first, count, vectors, grad);
#pragma unroll
  for (int s = 0; s <= kStates; ++s) {
    load_elements<P>(p.before[s], first, count, vectors, values[s]);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if constexpr (kStates == 0) {
      update.apply(values[0][i], grad[i]);
    } else if constexpr (kStates == 1) {
      update.apply(values[0][i], grad[i], values[1][i]);
    } else {
      update.apply(values[0][i], grad[i], values[1][i], values[2][i]);
    }
  }
#pragma unroll
  for (int s = 0; s <= kStates; ++s) {
    store_elements<P>(p.after[s], first, count, vectors, values[s]);
  }
}

/// Launches Update<compute type> on `args`, whose parameter and states are the operands in `before`.
template <template <class> class Update, int kStates, class Settings>
void run_update(const KernelArgs& args, const char* name, const int (&before)[kStates + 1],
                int grad, UpdateParams<kStates, Settings> p) {
  p.numel = args.inputs[0].numel();
  p.grad = args.inputs[static_cast<std::size_t>(grad)].data;
  p.vectors = is_aligned(p.grad, kVectorBytes);
  for (int s = 0; s <= kStates; ++s) {
    p.before[s] = args.inputs[static_cast<std::size_t>(before[s])].data;
    p.after[s] = args.outputs[static_cast<std::size_t>(s)].data;
    p.vectors =
        p.vectors && is_aligned(p.before[s], kVectorBytes) && is_aligned(p.after[s], kVectorBytes);
  }
  if (p.numel == 0) return;
  dispatch_update(args.inputs[0].dtype, args.inputs[static_cast<std::size_t>(grad)].dtype,
                  [&]<typename P, typename G>() {
                    launch(stream_of(args), name,
                           update_kernel<P, G, Update<compute_type<P>>, kStates, Settings>,
                           ceil_div(p.numel, kThreads * kPerThread), kThreads, 0, p);
                  });
}

void run_adam_step(const KernelArgs& args) {
  UpdateParams<2, AdamSettings> p;
  p.settings = adam_settings(args.attributes<AdamStepAttrs>());
  p.step = scalar_operand(args.inputs[kAdamStep], 1);
  p.lr = scalar_operand(args.inputs[kAdamLr], 0);
  p.grad_scale = scalar_operand(args.inputs[kAdamScale], 1);
  run_update<AdamUpdate, 2>(args, "adam_step", {kAdamParam, kAdamAvg, kAdamAvgSq}, kAdamGrad, p);
}

void run_sgd_step(const KernelArgs& args) {
  const SgdSettings settings = sgd_settings(args.attributes<SgdStepAttrs>());
  const ScalarOperand step = scalar_operand(args.inputs[kSgdStep], 1);
  const ScalarOperand lr = scalar_operand(args.inputs[kSgdLr], 0);
  const ScalarOperand scale = scalar_operand(args.inputs[kSgdScale], 1);
  const auto run = [&]<int kStates>(const int(&before)[kStates + 1]) {
    UpdateParams<kStates, SgdSettings> p;
    p.settings = settings;
    p.step = step;
    p.lr = lr;
    p.grad_scale = scale;
    run_update<SgdUpdate, kStates>(args, "sgd_step", before, kSgdGrad, p);
  };
  if (args.inputs[kSgdBuffer].present) {
    run.template operator()<1>({kSgdParam, kSgdBuffer});
  } else {
    run.template operator()<0>({kSgdParam});
  }
}

}  // namespace

void register_optimizer_kernels() {
  register_kernel("adam_step", DeviceType::cuda, {.name = "cuda.adam_step", .run = run_adam_step});
  register_kernel("sgd_step", DeviceType::cuda, {.name = "cuda.sgd_step", .run = run_sgd_step});
}

}  // namespace tenon::cuda
