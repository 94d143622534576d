// cross_entropy of contiguous logits (rows, classes), and its gradient. A group of threads owns a row
// (kernels/row_plan.h): it reads it once, by 16-byte accesses where rows are aligned, and keeps it in
// shared memory for the sum of exponentials and the gradient; rows that do not fit are read again. The
// sum over rows is taken by one block, in a fixed order. A target that is no class gives NaN: a kernel
// cannot throw.
#include "cuda/kernels/cross_entropy.h"

#include <limits>
#include <type_traits>

#include "cuda/check.h"
#include "cuda/device/rows.cuh"
#include "cuda/kernels/register.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kTotalThreads = 1024;

struct RowParams : LossRows {
  int lanes = 1;
  bool vectors = false;         // rows begin at 16-byte boundaries
  std::int64_t held_pitch = 0;  // elements between rows in shared memory
};

/// e^x for x <= 0, of 2 units in the last place beside the rounding of x/ln 2.
__device__ __forceinline__ float exp_of_difference(float x) {
  return exp2f(x * 1.44269504088896340736F);
}
__device__ __forceinline__ double exp_of_difference(double x) { return ::exp(x); }

/// f(n, column) for the columns of this thread: n neighbouring ones, as a constant, from `column` on.
template <class T, class F>
__device__ __forceinline__ void for_each_pack(const RowParams& p, const RowGroup& group, F f) {
  constexpr int kLength = vector_length<T>;
  const std::int64_t packs = p.vectors ? p.classes / kLength : 0;
#pragma unroll 4
  for (std::int64_t i = group.lane; i < packs; i += p.lanes) {
    f(std::integral_constant<int, kLength>{}, i * kLength);
  }
#pragma unroll 4
  for (std::int64_t i = packs * kLength + group.lane; i < p.classes; i += p.lanes) {
    f(std::integral_constant<int, 1>{}, i);
  }
}

/// What all threads of a row know of it.
template <class C>
struct RowStatistics {
  C maximum;
  C sum;   // Σ exp(x - maximum)
  C mean;  // of x - maximum, where losses are smoothed
};

/// Reads the row; with kHeld, into `held`. Every thread of the block must call it.
template <class T, bool kHeld>
__device__ __forceinline__ RowStatistics<compute_type<T>> read_row(const RowParams& p,
                                                                   const RowGroup& group,
                                                                   const T* source, T* held,
                                                                   compute_type<T>* scratch) {
  using C = compute_type<T>;
  RowStatistics<C> row{-std::numeric_limits<C>::infinity(), C(0), C(0)};
  for_each_pack<T>(p, group, [&](auto n, std::int64_t column) {
    constexpr int kN = decltype(n)::value;
    const Pack<T, kN> pack = load_pack<T, kN>(source + column);
    if constexpr (kHeld) store_pack<T, kN>(held + column, pack);
#pragma unroll
    for (int i = 0; i < kN; ++i) row.maximum = NumberMax{}(row.maximum, widen(pack.item[i]));
  });
  row.maximum = group_reduce(row.maximum, p.lanes, scratch, NumberMax{});
  const T* x = kHeld ? held : source;  // each thread reads back what it wrote
  const bool smooths = p.smoothing > 0 && p.losses != nullptr;
  for_each_pack<T>(p, group, [&](auto n, std::int64_t column) {
    constexpr int kN = decltype(n)::value;
    const Pack<T, kN> pack = load_pack<T, kN>(x + column);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const C difference = widen(pack.item[i]) - row.maximum;
      row.sum += exp_of_difference(difference);
      if (smooths) row.mean += difference;
    }
  });
  row.sum = group_reduce(row.sum, p.lanes, scratch, Sum{});
  if (smooths) {
    row.mean = group_reduce(row.mean, p.lanes, scratch, Sum{}) / static_cast<C>(p.classes);
  }
  return row;
}

/// -(1-s)·log p[target] - s·mean(log p), 0 where ignored; `wanted` is the target's logit.
template <class C>
__device__ __forceinline__ C loss_of(const RowParams& p, const RowStatistics<C>& row,
                                     std::int64_t target, C wanted) {
  if (target == p.ignore_index) return C(0);
  if (target < 0 || target >= p.classes) return std::numeric_limits<C>::quiet_NaN();
  const C log_sum = log_of(row.sum);
  const C smoothing = static_cast<C>(p.smoothing);
  const C loss = log_sum - (wanted - row.maximum);
  return p.smoothing > 0 ? (C(1) - smoothing) * loss + smoothing * (log_sum - row.mean) : loss;
}

/// What the loss of a row counts for in the whole.
template <class T>
__device__ __forceinline__ compute_type<T> factor_of(const RowParams& p, std::int64_t row) {
  using C = compute_type<T>;
  C factor = C(1);
  if (p.grad != nullptr) factor = widen(static_cast<const T*>(p.grad)[p.grad_per_row ? row : 0]);
  return p.counted != nullptr ? static_cast<C>(static_cast<double>(factor) / *p.counted) : factor;
}

/// factor·(softmax(x) - (1-s)·onehot(target) - s/classes), 0 where ignored.
template <class T>
__device__ __forceinline__ void write_gradients(const RowParams& p, const RowGroup& group,
                                                const RowStatistics<compute_type<T>>& row,
                                                std::int64_t target, const T* x, T* gradients) {
  using C = compute_type<T>;
  if (target == p.ignore_index) {
    for_each_pack<T>(p, group, [&](auto n, std::int64_t column) {
      store_pack<T, decltype(n)::value>(gradients + column, {});
    });
    return;
  }
  const bool is_class = target >= 0 && target < p.classes;
  const C factor = is_class ? factor_of<T>(p, group.row) : std::numeric_limits<C>::quiet_NaN();
  const C scale = factor / row.sum;
  const C share = factor * static_cast<C>(p.smoothing / static_cast<double>(p.classes));
  const C peak = factor * static_cast<C>(1 - p.smoothing);
  for_each_pack<T>(p, group, [&](auto n, std::int64_t column) {
    constexpr int kN = decltype(n)::value;
    Pack<T, kN> pack = load_pack<T, kN>(x + column);
    const auto gradient = [&](int i) {
      return exp_of_difference(widen(pack.item[i]) - row.maximum) * scale - share;
    };
    if (target >= column && target < column + kN) {
      const int hit = static_cast<int>(target - column);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        pack.item[i] = convert<T>(i == hit ? gradient(i) - peak : gradient(i));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) pack.item[i] = convert<T>(gradient(i));
    }
    store_pack<T, kN>(gradients + column, pack);
  });
}

template <class T, bool kHeld>
__global__ void __launch_bounds__(kMaxRowThreads, 2) loss_rows_kernel(const RowParams p) {
  using C = compute_type<T>;
  extern __shared__ __align__(kVectorBytes) unsigned char shared[];
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const T* source = static_cast<const T*>(p.logits) + group.row * p.pitch;
  T* held = reinterpret_cast<T*>(shared) + static_cast<int>(threadIdx.x) / p.lanes * p.held_pitch;
  const std::int64_t target = p.targets[group.row];
  const bool is_class = target >= 0 && target < p.classes;
  const C wanted = is_class && p.losses != nullptr ? widen(source[target]) : C(0);
  const auto row = read_row<T, kHeld>(p, group, source, held, scratch);
  __syncthreads();  // gradients may replace the logits: the target's was read
  if (!group.active) return;
  if (p.losses != nullptr && group.lane == 0) {
    const C loss = loss_of(p, row, target, wanted);
    if (p.rounds_losses) {
      static_cast<T*>(p.losses)[group.row] = convert<T>(loss);
    } else {
      static_cast<C*>(p.losses)[group.row] = loss;
    }
  }
  if (p.gradients == nullptr) return;
  T* gradients = static_cast<T*>(p.gradients) + group.row * p.pitch;
  write_gradients<T>(p, group, row, target, kHeld ? held : source, gradients);
}

__global__ void __launch_bounds__(kTotalThreads)
    count_targets_kernel(const std::int64_t* targets, std::int64_t rows, std::int64_t ignore_index,
                         double* counted) {
  __shared__ double scratch[kWarp];
  double count = 0;
#pragma unroll 8
  for (std::int64_t row = threadIdx.x; row < rows; row += kTotalThreads) {
    count += targets[row] != ignore_index ? 1 : 0;
  }
  count = group_reduce(count, kTotalThreads, scratch, Sum{});
  if (threadIdx.x == 0) *counted = count;
}

template <class C, class T>
__global__ void __launch_bounds__(kTotalThreads)
    total_loss_kernel(const C* losses, std::int64_t rows, const double* counted, T* total) {
  __shared__ double scratch[kWarp];
  double sum = 0;
#pragma unroll 8
  for (std::int64_t row = threadIdx.x; row < rows; row += kTotalThreads) {
    sum += static_cast<double>(losses[row]);
  }
  sum = group_reduce(sum, kTotalThreads, scratch, Sum{});
  if (threadIdx.x != 0) return;
  *total = convert<T>(static_cast<C>(counted != nullptr ? sum / *counted : sum));
}

/// What a block may have beside the kernel's own scratch memory.
std::size_t shared_limit(int device) {
  int bytes = 0;
  TENON_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  constexpr int kReserved = 1024;
  return static_cast<std::size_t>(bytes - kReserved);
}

LossRows rows_of(const KernelArgs& args, const TensorView& logits, const TensorView& targets) {
  const auto& attrs = args.attributes<CrossEntropyAttrs>();
  LossRows rows;
  rows.logits = logits.data;
  rows.pitch = logits.sizes[1];
  rows.targets = targets.as<const std::int64_t>();
  rows.rows = logits.sizes[0];
  rows.classes = logits.sizes[1];
  rows.ignore_index = attrs.ignore_index;
  rows.smoothing = attrs.label_smoothing;
  return rows;
}

/// Workspace of both kernels: the number of counted targets, then the losses.
constexpr std::size_t kCountedBytes = 256;

std::size_t cross_entropy_workspace(const KernelArgs& args) {
  if (args.attributes<CrossEntropyAttrs>().reduction == Reduction::none) return 0;
  const std::size_t size = args.inputs[0].dtype == DType::float64 ? sizeof(double) : sizeof(float);
  return kCountedBytes + static_cast<std::size_t>(args.inputs[0].sizes[0]) * size;
}

void run_cross_entropy(const KernelArgs& args) {
  const Stream stream = stream_of(args);
  const Reduction reduction = args.attributes<CrossEntropyAttrs>().reduction;
  const DType dtype = args.outputs[0].dtype;
  LossRows rows = rows_of(args, args.inputs[0], args.inputs[1]);
  const bool per_row = reduction == Reduction::none;
  rows.losses =
      per_row ? args.outputs[0].data : static_cast<std::byte*>(args.workspace) + kCountedBytes;
  rows.rounds_losses = per_row;
  launch_loss_rows(stream, "cross_entropy", dtype, rows);
  if (per_row) return;
  double* counted = reduction == Reduction::mean ? static_cast<double*>(args.workspace) : nullptr;
  if (counted != nullptr) {
    launch_count_targets(stream, "cross_entropy", rows.targets, rows.rows, rows.ignore_index,
                         counted);
  }
  launch_total_loss(stream, "cross_entropy", rows.losses, rows.rows, counted, dtype,
                    args.outputs[0].data);
}

std::size_t cross_entropy_backward_workspace(const KernelArgs& args) {
  return args.attributes<CrossEntropyAttrs>().reduction == Reduction::mean ? kCountedBytes : 0;
}

void run_cross_entropy_backward(const KernelArgs& args) {
  const Stream stream = stream_of(args);
  const Reduction reduction = args.attributes<CrossEntropyAttrs>().reduction;
  if (args.outputs[0].numel() == 0) return;
  LossRows rows = rows_of(args, args.inputs[1], args.inputs[2]);
  rows.grad = args.inputs[0].data;
  rows.grad_per_row = reduction == Reduction::none;
  rows.gradients = args.outputs[0].data;
  if (reduction == Reduction::mean) {
    auto* counted = static_cast<double*>(args.workspace);
    launch_count_targets(stream, "cross_entropy_backward", rows.targets, rows.rows,
                         rows.ignore_index, counted);
    rows.counted = counted;
  }
  launch_loss_rows(stream, "cross_entropy_backward", args.outputs[0].dtype, rows);
}

}  // namespace

void launch_loss_rows(Stream stream, const char* name, DType dtype, const LossRows& rows) {
  if (rows.rows == 0) return;
  dispatch_float(dtype, [&]<typename T>() {
    RowParams p{rows};
    // Rows of no classes still need a thread.
    const RowPlan plan = plan_rows(p.rows, p.classes > 0 ? p.classes : 1, row_chunks<T>);
    p.lanes = plan.lanes;
    p.vectors = p.pitch % vector_length<T> == 0 && is_aligned(p.logits, kVectorBytes) &&
                is_aligned(p.gradients, kVectorBytes);
    p.held_pitch = ceil_div(p.classes, vector_length<T>) * vector_length<T>;
    const std::size_t bytes =
        static_cast<std::size_t>(plan.threads / plan.lanes * p.held_pitch) * sizeof(T);
    const bool held = bytes <= shared_limit(stream.device);
    launch(stream, name, held ? loss_rows_kernel<T, true> : loss_rows_kernel<T, false>, plan.blocks,
           plan.threads, held ? bytes : 0, p);
  });
}

void launch_count_targets(Stream stream, const char* name, const std::int64_t* targets,
                          std::int64_t rows, std::int64_t ignore_index, double* counted) {
  launch(stream, name, count_targets_kernel, 1, kTotalThreads, 0, targets, rows, ignore_index,
         counted);
}

void launch_total_loss(Stream stream, const char* name, const void* losses, std::int64_t rows,
                       const double* counted, DType total_dtype, void* total) {
  dispatch_float(total_dtype, [&]<typename T>() {
    using C = compute_type<T>;
    launch(stream, name, total_loss_kernel<C, T>, 1, kTotalThreads, 0,
           static_cast<const C*>(losses), rows, counted, static_cast<T*>(total));
  });
}

void register_cross_entropy_kernels() {
  register_kernel("cross_entropy", DeviceType::cuda,
                  {.name = "cuda.cross_entropy",
                   .run = run_cross_entropy,
                   .workspace_bytes = cross_entropy_workspace});
  register_kernel("cross_entropy_backward", DeviceType::cuda,
                  {.name = "cuda.cross_entropy_backward",
                   .run = run_cross_entropy_backward,
                   .workspace_bytes = cross_entropy_backward_workspace});
}

}  // namespace tenon::cuda
