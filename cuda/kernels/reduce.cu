// sum, mean, var, amax and amin over any axes of an input of any strides, accumulated in float32
// (float64 for float64, int64 for sums of integers). var takes two passes, the mean first. The order of combination is fixed by sizes and strides
// (kernels/reduce_plan.h), so results are the same from run to run; a few outputs with many inputs
// each take a second pass over partial results. Sums over rows of a matrix read 16 bytes a thread.
#include <algorithm>
#include <limits>

#include "cuda/device/column_totals.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/reduce_plan.h"
#include "cuda/kernels/register.h"
#include "tensor/ops/indexing_attributes.h"

namespace tenon::cuda {
namespace {

/// What is done beside the combination of values: with a total, and before it.
struct Finish {
  bool divides = false;  // mean, var
  bool flips = false;    // a minimum is the maximum of order-reversed values
  double divisor = 1;
  const void* centers = nullptr;  // SquaredDeviation: an Acc for each output
};

struct ReduceParams {
  const void* source = nullptr;
  void* target = nullptr;  // Out, or Acc where there are splits; by columns [splits, outputs]
  std::int64_t outputs = 0;
  std::int64_t count = 0;
  std::int64_t splits = 1;
  std::int64_t split_size = 0;
  int lanes = 1;
  int column_threads = 0;
  bool vectors = false;  // 16-byte loads: rows, or by columns stretches of columns, are aligned
  bool vector_store = false;  // by columns, and the target is aligned
  bool flips_input = false;
  Finish finish;
  IndexMap<1> kept;
  IndexMap<1> reduced;
};

/// A sum of (value - center)².
struct SquaredDeviation : Sum {};

template <class Op>
inline constexpr bool is_sum = std::is_base_of_v<Sum, Op>;

/// Reverses the order of values: exact and its own inverse.
template <class C>
__device__ __forceinline__ C flipped(C value) {
  if constexpr (std::is_floating_point_v<C>)
    return -value;
  else
    return static_cast<C>(~value);
}

template <class Op, class Acc>
constexpr Acc identity_of() {
  if constexpr (is_sum<Op>)
    return Acc(0);
  else if constexpr (std::is_floating_point_v<Acc>)
    return -std::numeric_limits<Acc>::infinity();
  else
    return std::numeric_limits<Acc>::lowest();
}

template <class Op, class Acc>
__device__ __forceinline__ Acc center_of(const ReduceParams& p, std::int64_t output) {
  if constexpr (std::is_same_v<Op, SquaredDeviation>)
    return static_cast<const Acc*>(p.finish.centers)[output];
  else
    return Acc(0);
}

template <class Op, class Acc, class T>
__device__ __forceinline__ Acc read(const ReduceParams& p, T value, Acc center) {
  const Acc wide = static_cast<Acc>(widen(value));
  if constexpr (std::is_same_v<Op, Sum>)
    return wide;
  else if constexpr (std::is_same_v<Op, SquaredDeviation>)
    return (wide - center) * (wide - center);
  else
    return p.flips_input ? flipped(wide) : wide;
}

template <class Op, class Out, class Acc>
__device__ __forceinline__ Out finished(const Finish& finish, Acc value) {
  if constexpr (is_sum<Op>) {
    if constexpr (std::is_floating_point_v<Acc>) {
      if (finish.divides) value /= static_cast<Acc>(finish.divisor);
    }
  } else {
    if (finish.flips) value = flipped(value);
  }
  return convert<Out>(value);
}

template <class Op, class Out, class Acc>
__device__ __forceinline__ void write(const ReduceParams& p, std::int64_t place, Acc value) {
  if (p.splits > 1) {
    static_cast<Acc*>(p.target)[place] = value;
  } else {
    static_cast<Out*>(p.target)[place] = finished<Op, Out>(p.finish, value);
  }
}

/// finish of launch_column_totals.
template <class Op, class Out>
struct StoreFinished {
  Out* target;
  Finish finish;
  template <class Acc>
  __device__ __forceinline__ void operator()(std::int64_t column, Acc total) const {
    target[column] = finished<Op, Out>(finish, total);
  }
};

/// One group of lanes an output (or a split of one).
template <class Op, class T, class Acc, class Out>
__global__ void __launch_bounds__(kReduceThreads) reduce_rows_kernel(const ReduceParams p) {
  __shared__ Acc scratch[kWarp];
  constexpr int kLength = vector_length<T>;
  constexpr int kSums = kLength < 4 ? kLength : 4;
  const Op op{};
  const int lane = static_cast<int>(threadIdx.x) % p.lanes;
  const std::int64_t group =
      block_index() * (kReduceThreads / p.lanes) + static_cast<int>(threadIdx.x) / p.lanes;
  const bool active = group < p.outputs * p.splits;
  Acc sums[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = identity_of<Op, Acc>();
  if (active) {
    const std::int64_t output = group / p.splits;
    const std::int64_t begin = (group - output * p.splits) * p.split_size;
    const std::int64_t end = begin + p.split_size < p.count ? begin + p.split_size : p.count;
    std::int64_t base[1];
    p.kept.offsets(output, base);
    const T* row = static_cast<const T*>(p.source) + base[0];
    const Acc center = center_of<Op, Acc>(p, output);
    std::int64_t singles = begin;
    if (p.vectors) {
      singles = begin + (end - begin) / kLength * kLength;
#pragma unroll 4
      for (std::int64_t r = begin + lane * kLength; r < singles; r += p.lanes * kLength) {
        const Pack<T, kLength> pack = load_pack<T, kLength>(row + r);
#pragma unroll
        for (int i = 0; i < kLength; ++i) {
          sums[i % kSums] = op(sums[i % kSums], read<Op, Acc>(p, pack.item[i], center));
        }
      }
    }
#pragma unroll 4
    for (std::int64_t r = singles + lane; r < end; r += p.lanes) {
      std::int64_t offset[1];
      p.reduced.offsets(r, offset);
      sums[0] = op(sums[0], read<Op, Acc>(p, row[offset[0]], center));
    }
  }
#pragma unroll
  for (int i = 1; i < kSums; ++i) sums[0] = op(sums[0], sums[i]);
  const Acc total = group_reduce(sums[0], p.lanes, scratch, op);
  if (active && lane == 0) write<Op, Out>(p, group, total);
}

/// kLength neighbouring columns of one row.
template <int kLength, class T>
__device__ __forceinline__ Pack<T, kLength> load_columns(const T* source, bool vectors) {
  if (vectors) return load_pack<T, kLength>(source);
  Pack<T, kLength> pack;
#pragma unroll
  for (int i = 0; i < kLength; ++i) pack.item[i] = source[i];
  return pack;
}

/// This thread's results for neighbouring outputs from `column` on.
template <class Op, class Out, class T, int kLength, class Acc>
__device__ __forceinline__ void write_columns(const ReduceParams& p, std::int64_t split,
                                              std::int64_t column, const Acc (&sums)[kLength]) {
  if constexpr (sizeof(Out) == sizeof(T)) {
    if (p.vector_store && p.splits == 1) {
      Pack<Out, kLength> pack;
#pragma unroll
      for (int i = 0; i < kLength; ++i) pack.item[i] = finished<Op, Out>(p.finish, sums[i]);
      return store_pack<Out, kLength>(static_cast<Out*>(p.target) + column, pack);
    }
  }
#pragma unroll
  for (int i = 0; i < kLength; ++i) {
    write<Op, Out>(p, split * p.outputs + column + i, sums[i]);
  }
}

/// column_threads threads of a block have kLength neighbouring outputs each, which the threads that have
/// the same ones share row by row.
template <class Op, class T, class Acc, class Out, int kLength>
__global__ void __launch_bounds__(kReduceThreads) reduce_columns_kernel(const ReduceParams p) {
  constexpr int kAtOnce = kLength > 1 ? 8 : 4;  // loads in flight
  __shared__ Acc partial[kLength][kReduceThreads];
  const Op op{};
  const int thread = static_cast<int>(threadIdx.x);
  const int x = thread % p.column_threads;
  const int y = thread / p.column_threads;
  const int row_lanes = kReduceThreads / p.column_threads;
  const std::int64_t column_block = block_index() / p.splits;
  const std::int64_t split = block_index() - column_block * p.splits;
  const std::int64_t column = (column_block * p.column_threads + x) * kLength;
  Acc sums[kLength];
  Acc centers[kLength];
#pragma unroll
  for (int i = 0; i < kLength; ++i) sums[i] = identity_of<Op, Acc>();
  if (column < p.outputs) {
    const std::int64_t begin = split * p.split_size;
    const std::int64_t end = begin + p.split_size < p.count ? begin + p.split_size : p.count;
    std::int64_t base[1];
    p.kept.offsets(column, base);
    const T* columns = static_cast<const T*>(p.source) + base[0];
#pragma unroll
    for (int i = 0; i < kLength; ++i) centers[i] = center_of<Op, Acc>(p, column + i);
    std::int64_t r = begin + y;
    if (p.reduced.rank == 1 && (kLength == 1 || p.vectors)) {
      // Rows at one stride, all of them there: loads need no tests and no divisions between them.
      const std::int64_t step = row_lanes * p.reduced.strides[0][0];
      const T* rows = columns + r * p.reduced.strides[0][0];
      for (; r + (kAtOnce - 1) * row_lanes < end; r += kAtOnce * row_lanes) {
        Pack<T, kLength> packs[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) packs[k] = load_pack<T, kLength>(rows + k * step);
        rows += kAtOnce * step;
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
          for (int i = 0; i < kLength; ++i) {
            sums[i] = op(sums[i], read<Op, Acc>(p, packs[k].item[i], centers[i]));
          }
        }
      }
    }
    for (; r < end; r += kAtOnce * row_lanes) {
      Pack<T, kLength> packs[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const std::int64_t row = r + k * row_lanes;
        if (row >= end) break;
        std::int64_t offset[1];
        p.reduced.offsets(row, offset);
        packs[k] = load_columns<kLength>(columns + offset[0], p.vectors);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (r + k * row_lanes >= end) break;
#pragma unroll
        for (int i = 0; i < kLength; ++i) {
          sums[i] = op(sums[i], read<Op, Acc>(p, packs[k].item[i], centers[i]));
        }
      }
    }
  }
  for (int half = row_lanes / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < kLength; ++i) partial[i][thread] = sums[i];
    __syncthreads();
    if (y < half) {
#pragma unroll
      for (int i = 0; i < kLength; ++i) {
        sums[i] = op(sums[i], partial[i][thread + half * p.column_threads]);
      }
    }
    __syncthreads();
  }
  if (y == 0 && column < p.outputs) write_columns<Op, Out, T>(p, split, column, sums);
}

/// Whether each output's inputs are one contiguous stretch that starts at a 16-byte boundary.
bool has_aligned_rows(const ReducePlan& plan, const void* source, std::int64_t length) {
  if (plan.reduced.sizes.size() != 1 || plan.reduced.strides[0][0] != 1) return false;
  for (std::int64_t stride : plan.kept.strides[0]) {
    if (stride % length != 0 && plan.outputs > 1) return false;
  }
  return is_aligned(source, kVectorBytes);
}

ReduceParams params_of(const ReducePlan& plan, const void* source, void* target,
                       std::int64_t length) {
  ReduceParams p;
  p.source = source;
  p.target = target;
  p.outputs = plan.outputs;
  p.count = plan.count;
  p.splits = plan.splits;
  p.split_size = plan.split_size;
  p.lanes = plan.lanes;
  p.column_threads = plan.column_threads;
  p.vectors =
      plan.by_columns ? is_aligned(source, kVectorBytes) : has_aligned_rows(plan, source, length);
  p.vector_store = plan.columns > 1 && is_aligned(target, kVectorBytes);
  p.kept = IndexMap<1>(plan.kept);
  p.reduced = IndexMap<1>(plan.reduced);
  return p;
}

template <class Op, class T, class Acc, class Out>
void run_pass(Stream stream, const char* name, const ReducePlan& plan, const ReduceParams& p) {
  const auto kernel = !plan.by_columns ? reduce_rows_kernel<Op, T, Acc, Out>
                      : plan.columns == 1
                          ? reduce_columns_kernel<Op, T, Acc, Out, 1>
                          : reduce_columns_kernel<Op, T, Acc, Out, vector_length<T>>;
  launch(stream, name, kernel, plan.blocks, kReduceThreads, 0, p);
}

/// Combines the parts of each output that `plan`'s splits left.
template <class Op, class Acc, class Out>
void combine_splits(Stream stream, const char* name, const ReducePlan& plan, const void* parts,
                    void* target, const Finish& finish) {
  if (plan.by_columns) {
    return launch_column_totals<Op>(stream, name, parts, plan.splits, plan.outputs,
                                    identity_of<Op, Acc>(),
                                    StoreFinished<Op, Out>{static_cast<Out*>(target), finish});
  }
  TensorView totals;
  totals.dtype = dtype_of<Acc>;
  totals.sizes = {plan.outputs, plan.splits};
  totals.strides = {plan.splits, 1};
  const ReducePlan second = plan_reduction(totals, {1});
  ReduceParams p = params_of(second, parts, target, vector_length<Acc>);
  p.finish = finish;
  launch(stream, name, reduce_rows_kernel<Op, Acc, Acc, Out>, second.blocks, kReduceThreads, 0, p);
}

/// Reduces the axes that `plan` reduces of `source`; `target` holds an Out for each output, `parts`
/// partial_count(plan) values.
template <class Op, class T, class Acc, class Out>
void reduce(Stream stream, const char* name, const ReducePlan& plan, const void* source,
            void* target, void* parts, const Finish& finish) {
  if (plan.outputs == 0) return;
  ReduceParams p = params_of(plan, source, plan.splits == 1 ? target : parts, vector_length<T>);
  p.finish = finish;
  p.flips_input = finish.flips;
  run_pass<Op, T, Acc, Out>(stream, name, plan, p);
  using Total = std::conditional_t<is_sum<Op>, Sum, Op>;
  if (plan.splits > 1) combine_splits<Total, Acc, Out>(stream, name, plan, parts, target, finish);
}

template <class Op, class T, class Acc, class Out>
void reduce(const KernelArgs& args, const Finish& finish) {
  const ReducePlan plan = plan_reduction(args.inputs[0], args.attributes<ReduceAttrs>().dim);
  reduce<Op, T, Acc, Out>(stream_of(args), args.op->name.c_str(), plan, args.inputs[0].data,
                          args.outputs[0].data, args.workspace, finish);
}

/// Bytes of `count` values in the type that elements of `dtype` are combined in, at most.
std::size_t bytes_of_partials(std::int64_t count, DType dtype) {
  const bool is_float = is_floating(dtype) && dtype != DType::float64;
  return static_cast<std::size_t>(count) * (is_float ? sizeof(float) : sizeof(double));
}

std::size_t reduce_workspace(const KernelArgs& args) {
  const ReducePlan plan = plan_reduction(args.inputs[0], args.attributes<ReduceAttrs>().dim);
  return bytes_of_partials(partial_count(plan), args.inputs[0].dtype);
}

void run_sum(const KernelArgs& args) {
  dispatch_all(args.inputs[0].dtype, [&]<typename T>() {
    if constexpr (std::is_integral_v<T>) {
      reduce<Sum, T, std::int64_t, std::int64_t>(args, {});
    } else {
      reduce<Sum, T, compute_type<T>, T>(args, {});
    }
  });
}

void run_mean(const KernelArgs& args) {
  const std::int64_t outputs = args.outputs[0].numel();
  if (outputs == 0) return;
  const Finish finish{.divides = true,
                      .divisor = static_cast<double>(args.inputs[0].numel() / outputs)};
  dispatch_float(args.inputs[0].dtype,
                 [&]<typename T>() { reduce<Sum, T, compute_type<T>, T>(args, finish); });
}

void run_var(const KernelArgs& args) {
  const std::int64_t outputs = args.outputs[0].numel();
  if (outputs == 0) return;
  const auto& attrs = args.attributes<VarAttrs>();
  const TensorView& input = args.inputs[0];
  const auto count = static_cast<double>(input.numel() / outputs);
  const ReducePlan plan = plan_reduction(input, attrs.dim);
  auto* parts = static_cast<std::byte*>(args.workspace);
  std::byte* means = parts + bytes_of_partials(partial_count(plan), input.dtype);
  dispatch_float(input.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const Stream stream = stream_of(args);
    reduce<Sum, T, C, C>(stream, "var", plan, input.data, means, parts,
                         {.divides = true, .divisor = count});
    // As in PyTorch, a correction beyond the count divides by 0.
    reduce<SquaredDeviation, T, C, T>(
        stream, "var", plan, input.data, args.outputs[0].data, parts,
        {.divides = true, .divisor = std::max(0.0, count - attrs.correction), .centers = means});
  });
}

/// Partial results, then the means.
std::size_t var_workspace(const KernelArgs& args) {
  const ReducePlan plan = plan_reduction(args.inputs[0], args.attributes<VarAttrs>().dim);
  return bytes_of_partials(partial_count(plan) + plan.outputs, args.inputs[0].dtype);
}

template <bool kMinimum>
void run_extremum(const KernelArgs& args) {
  require_elements(args);
  const Finish finish{.flips = kMinimum};
  switch (args.inputs[0].dtype) {
    case DType::int64:
      return reduce<NanMax, std::int64_t, std::int64_t, std::int64_t>(args, finish);
    case DType::int32:
      return reduce<NanMax, std::int32_t, std::int32_t, std::int32_t>(args, finish);
    case DType::uint8:
    case DType::boolean:  // a byte of 0 or 1
      return reduce<NanMax, std::uint8_t, std::uint8_t, std::uint8_t>(args, finish);
    default:
      dispatch_float(args.inputs[0].dtype,
                     [&]<typename T>() { reduce<NanMax, T, compute_type<T>, T>(args, finish); });
  }
}

void register_reduction(std::string_view op, std::string_view name, void (*run)(const KernelArgs&),
                        std::size_t (*workspace_bytes)(const KernelArgs&)) {
  register_kernel(
      op, DeviceType::cuda,
      {.name = name, .run = run, .accepts = any_layout, .workspace_bytes = workspace_bytes});
}

}  // namespace

void register_reduce_kernels() {
  register_reduction("sum", "cuda.sum", run_sum, reduce_workspace);
  register_reduction("mean", "cuda.mean", run_mean, reduce_workspace);
  register_reduction("var", "cuda.var", run_var, var_workspace);
  register_reduction("amax", "cuda.amax", run_extremum<false>, reduce_workspace);
  register_reduction("amin", "cuda.amin", run_extremum<true>, reduce_workspace);
}

}  // namespace tenon::cuda
