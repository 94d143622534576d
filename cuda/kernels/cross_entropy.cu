// cross_entropy of contiguous logits (rows, classes), and its gradient. A group of threads owns a row
// (kernels/row_plan.h) and reads it once: asynchronous copies bring it to shared memory, a running sum
// takes each part as it arrives (device/running_sum.cuh), and gradients are made from what is held.
// Blocks stay: each part of the next row is on its way as soon as the gradients of this row's are written.
// Rows that do not fit are read from global memory, twice. The sum over rows is taken by one block, in a
// fixed order. A target that is no class gives NaN: a kernel cannot throw.
#include "cuda/kernels/cross_entropy.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cuda/device/any_float.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/device/running_sum.cuh"
#include "cuda/kernels/register.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kTotalThreads = 1024;
constexpr int kParts = 4;  // of a row: what is waited for, and replaced, at once
/// Threads of a multiprocessor.
template <class T>
constexpr int resident_threads = sizeof(T) == 8 ? kWideResidentThreads : kResidentThreads;

/// Whether there is a kernel that holds rows in shared memory: float64 is not worth one, as
/// plan_loss_rows knows.
template <class T>
inline constexpr bool can_hold = sizeof(T) < 8;

struct RowParams : LossRows {
  int lanes = 1;
  std::int64_t row_blocks = 0;  // rows over the rows that a block has at a time
  std::int64_t packs = 0;       // of 16 bytes; 0 unless all rows begin at 16-byte boundaries
  std::int64_t part = 0;        // packs of a part, a multiple of `lanes`
  std::int64_t held_pitch = 0;  // elements between rows in shared memory
};

/// A row as one of its threads sees it. Columns are of type `Index`: int where shared memory holds the row.
template <class T, class Index>
struct RowColumns {
  static constexpr int kLength = vector_length<T>;
  RowGroup group;
  Index classes, packs, part;

  __device__ __forceinline__ RowColumns(const RowParams& p, std::int64_t block)
      : group(p.rows, p.lanes),
        classes(static_cast<Index>(p.classes)),
        packs(static_cast<Index>(p.packs)),
        part(static_cast<Index>(p.part)) {
    // From the last rows on: where a product just wrote the logits, those are still in L2.
    const int rows_of_block = static_cast<int>(blockDim.x) / p.lanes;
    group.move_to(
        (p.row_blocks - 1 - block) * rows_of_block + static_cast<int>(threadIdx.x) / p.lanes,
        p.rows);
  }

  /// f(n, column) for this thread's columns of a part: n neighbouring ones, as a constant, from `column` on.
  /// The last part has the columns that are in no pack too.
  template <class F>
  __device__ __forceinline__ void for_each(int number, F f) const {
    const Index first = number * part;
    const Index end = first + part < packs ? first + part : packs;
#pragma unroll 2
    for (Index i = first + group.lane; i < end; i += group.lanes) {
      f(std::integral_constant<int, kLength>{}, i * kLength);
    }
    if (number + 1 < kParts) return;
#pragma unroll 4
    for (Index i = packs * kLength + group.lane; i < classes; i += group.lanes) {
      f(std::integral_constant<int, 1>{}, i);
    }
  }

  /// Whether this thread has the column.
  __device__ __forceinline__ bool has(Index column) const {
    const Index packed = packs * kLength;
    const Index place = column < packed ? column / kLength : column - packed;
    return place % group.lanes == group.lane;
  }
};

/// N elements of shared or global memory in the compute type.
template <int N, class T>
__device__ __forceinline__ void read(const T* source, compute_type<T> (&values)[N]) {
  if constexpr (std::is_same_v<T, BFloat16> && N % 2 == 0) {
    // A bfloat16 is the upper half of a float: one instruction for each half of a word.
    const auto words = load_pack<unsigned, N / 2>(reinterpret_cast<const unsigned*>(source));
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      values[2 * i] = __uint_as_float(words.item[i] << 16);
      values[2 * i + 1] = __uint_as_float(words.item[i] & 0xffff0000U);
    }
  } else {
    load_widened(source, values);
  }
}

/// Starts copying a part of a row to shared memory; each thread will read what it copied itself.
template <class T, class Index>
__device__ __forceinline__ void copy_part(const RowColumns<T, Index>& columns, int part,
                                          const T* source, T* held) {
  columns.for_each(part, [&](auto n, Index column) {
    if constexpr (decltype(n)::value > 1) {
      copy_async16(shared_address(held + column), source + column, true);
    } else {
      held[column] = source[column];
    }
  });
  copy_async_commit();
}

/// Waits for the copies up to this part's, where those of one whole row were started last.
__device__ __forceinline__ void wait_for_part(int part) {
  static_assert(kParts == 4);
  switch (part) {
    case 0: return copy_async_wait<3>();
    case 1: return copy_async_wait<2>();
    case 2: return copy_async_wait<1>();
    default: return copy_async_wait<0>();
  }
}

/// The maximum of a row and Σ exp(x - maximum). Every thread of the block must call it.
template <bool kHeld, class T, class Index>
__device__ __forceinline__ RunningSum<compute_type<T>> sum_row(const RowColumns<T, Index>& columns,
                                                               const T* x,
                                                               compute_type<T>* scratch) {
  RunningSum<compute_type<T>> own;
  for (int part = 0; part < kParts; ++part) {
    if constexpr (kHeld) wait_for_part(part);
    columns.for_each(part, [&](auto n, Index column) {
      compute_type<T> values[decltype(n)::value];
      read(x + column, values);
      own.add(values);
    });
  }
  return own.combined(columns.group.lanes, scratch);
}

/// The mean of x - maximum over a row. Every thread of the block must call it.
template <class T, class Index>
__device__ __forceinline__ compute_type<T> mean_of_row(const RowColumns<T, Index>& columns,
                                                       const T* x, compute_type<T> maximum,
                                                       compute_type<T>* scratch) {
  using C = compute_type<T>;
  C sum = C(0);
  for (int part = 0; part < kParts; ++part) {
    columns.for_each(part, [&](auto n, Index column) {
      C values[decltype(n)::value];
      read(x + column, values);
#pragma unroll
      for (const C value : values) sum += value - maximum;
    });
  }
  return group_reduce(sum, columns.group.lanes, scratch, Sum{}) / static_cast<C>(columns.classes);
}

/// -(1-s)·log p[target] - s·mean(log p), 0 where ignored; `wanted` is the target's logit, `mean` that of
/// x - maximum.
template <class C>
__device__ __forceinline__ C loss_of(const RowParams& p, const RunningSum<C>& row, C mean,
                                     std::int64_t target, C wanted) {
  if (target == p.ignore_index) return C(0);
  if (target < 0 || target >= p.classes) return std::numeric_limits<C>::quiet_NaN();
  const C log_sum = log_of(row.sum);
  const C smoothing = static_cast<C>(p.smoothing);
  const C loss = log_sum - (wanted - row.maximum);
  return p.smoothing > 0 ? (C(1) - smoothing) * loss + smoothing * (log_sum - mean) : loss;
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
template <class C>
struct Gradient {
  C maximum;
  C scale;  // factor/sum
  C share;  // factor·s/classes
  C peak;   // factor·(1-s)
  bool ignored;

  __device__ __forceinline__ Gradient(const RowParams& p, const RunningSum<C>& row,
                                      std::int64_t target, C factor)
      : maximum(row.maximum), ignored(target == p.ignore_index) {
    if (target < 0 || target >= p.classes) factor = std::numeric_limits<C>::quiet_NaN();
    scale = factor / row.sum;
    share = factor * static_cast<C>(p.smoothing / static_cast<double>(p.classes));
    peak = factor * static_cast<C>(1 - p.smoothing);
  }
  /// Without the target's `peak`.
  __device__ __forceinline__ C operator()(C x) const {
    return exp_of_difference(x - maximum) * scale - share;
  }
};

/// The gradients of a part of the row, without the target's `peak`.
template <class T, class Index>
__device__ __forceinline__ void write_part(const RowColumns<T, Index>& columns, int part,
                                           const Gradient<compute_type<T>>& gradient, const T* x,
                                           T* gradients) {
  using C = compute_type<T>;
  if (gradient.ignored) {
    return columns.for_each(part, [&](auto n, Index column) {
      const C zeros[decltype(n)::value] = {};
      store_narrowed(gradients + column, zeros);
    });
  }
  columns.for_each(part, [&](auto n, Index column) {
    C values[decltype(n)::value];
    read(x + column, values);
#pragma unroll
    for (C& value : values) value = gradient(value);
    store_narrowed(gradients + column, values);
  });
}

template <class T, bool kHeld>
__global__ void __launch_bounds__(kMaxRowThreads, resident_threads<T> / kMaxRowThreads)
    loss_rows_kernel(const RowParams p) {
  using C = compute_type<T>;
  using Columns = RowColumns<T, std::conditional_t<kHeld, int, std::int64_t>>;
  extern __shared__ __align__(kVectorBytes) unsigned char shared[];
  __shared__ C scratch[kWarp];
  T* held = reinterpret_cast<T*>(shared) + static_cast<int>(threadIdx.x) / p.lanes * p.held_pitch;
  const auto logits_of = [&](const Columns& columns) {
    return static_cast<const T*>(p.logits) + columns.group.row * p.pitch;
  };
  if constexpr (kHeld) {
    const Columns first(p, block_index());
    for (int part = 0; part < kParts; ++part) copy_part(first, part, logits_of(first), held);
  }
  for (std::int64_t block = block_index(); block < p.row_blocks; block += gridDim.x) {
    const Columns columns(p, block);
    const std::int64_t row = columns.group.row;
    const T* x = kHeld ? held : logits_of(columns);
    const std::int64_t target = p.targets[row];
    const C factor = factor_of<T>(p, row);
    const RunningSum<C> sum = sum_row<kHeld>(columns, x, scratch);
    const bool smooths = p.smoothing > 0 && p.losses != nullptr;
    const C mean = smooths ? mean_of_row(columns, x, sum.maximum, scratch) : C(0);

    // The thread that has the target's column keeps its logit: gradients and the next row replace it.
    const bool is_class = target >= 0 && target < p.classes;
    const bool has_target = columns.group.active && columns.has(is_class ? target : 0);
    const C wanted = has_target && is_class ? widen(x[target]) : C(0);
    if (has_target && p.losses != nullptr) {
      const C loss = loss_of(p, sum, mean, target, wanted);
      if (p.rounds_losses) {
        static_cast<T*>(p.losses)[row] = convert<T>(loss);
      } else {
        static_cast<C*>(p.losses)[row] = loss;
      }
    }

    const Gradient<C> gradient(p, sum, target, factor);
    const bool wants_gradients = columns.group.active && p.gradients != nullptr;
    T* gradients = static_cast<T*>(p.gradients) + row * p.pitch;
    const bool has_next = kHeld && block + gridDim.x < p.row_blocks;
    const Columns next(p, has_next ? block + gridDim.x : block);
    for (int part = 0; part < kParts; ++part) {
      if (wants_gradients) write_part(columns, part, gradient, x, gradients);
      if (has_next) copy_part(next, part, logits_of(next), held);
    }
    if (wants_gradients && has_target && is_class && !gradient.ignored) {
      gradients[target] = convert<T>(gradient(wanted) - gradient.peak);
    }
  }
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

template <class C>
__global__ void __launch_bounds__(kTotalThreads)
    total_loss_kernel(const C* losses, std::int64_t rows, const double* counted, DType total_dtype,
                      void* total) {
  __shared__ double scratch[kWarp];
  double sum = 0;
#pragma unroll 8
  for (std::int64_t row = threadIdx.x; row < rows; row += kTotalThreads) {
    sum += static_cast<double>(losses[row]);
  }
  sum = group_reduce(sum, kTotalThreads, scratch, Sum{});
  if (threadIdx.x != 0) return;
  store_as(total_dtype, total, 0, static_cast<C>(counted != nullptr ? sum / *counted : sum));
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
    const LossRowsPlan plan =
        plan_loss_rows(p.rows, p.classes, sizeof(T), device_limits(stream.device));
    p.lanes = plan.lanes;
    p.row_blocks = plan.row_blocks;
    p.held_pitch = plan.held_pitch;
    const bool vectors = p.pitch % vector_length<T> == 0 && is_aligned(p.logits, kVectorBytes) &&
                         is_aligned(p.gradients, kVectorBytes);
    p.packs = vectors ? p.classes / vector_length<T> : 0;
    p.part = ceil_div(ceil_div(p.packs, p.lanes), kParts) * p.lanes;
    launch(stream, name, plan.held ? loss_rows_kernel<T, can_hold<T>> : loss_rows_kernel<T, false>,
           plan.blocks, plan.threads, plan.shared_bytes, p);
  });
}

void launch_count_targets(Stream stream, const char* name, const std::int64_t* targets,
                          std::int64_t rows, std::int64_t ignore_index, double* counted) {
  launch(stream, name, count_targets_kernel, 1, kTotalThreads, 0, targets, rows, ignore_index,
         counted);
}

void launch_total_loss(Stream stream, const char* name, const void* losses, std::int64_t rows,
                       const double* counted, DType total_dtype, void* total) {
  dispatch_compute(total_dtype, [&]<typename C>() {
    launch(stream, name, total_loss_kernel<C>, 1, kTotalThreads, 0, static_cast<const C*>(losses),
           rows, counted, total_dtype, total);
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
