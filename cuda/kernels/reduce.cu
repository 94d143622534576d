// sum, mean, var, amax and amin over any axes of an input of any strides, accumulated in float32
// (float64 for float64, int64 for integers). var takes two passes, the mean first. The order of
// combination is fixed by sizes and strides (kernels/reduce_plan.h), so results are the same from
// run to run; a few outputs with many inputs each take a second pass over partial results. Sums over
// rows of a matrix read 16 bytes a thread.
//
// Sums of floats have kernels of their own. What else is combined is told apart at run time, in
// front of the values of a few loads, and so is the type of results.
#include "cuda/device/any_float.cuh"
#include "cuda/device/column_totals.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/reduce_plan.h"
#include "cuda/kernels/register.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

template <class T>
using Accumulator = std::conditional_t<std::is_integral_v<T>, std::int64_t, compute_type<T>>;

enum class Combination { sum, squared_deviations, maximum };

/// What is done beside the combination of values: with a total, and before it.
struct Finish {
  bool divides = false;  // mean, var
  bool flips = false;    // a minimum is the maximum of order-reversed values
  double divisor = 1;
};

struct ReduceParams {
  const void* source = nullptr;
  void* target = nullptr;         // by columns [splits, outputs]
  const void* centers = nullptr;  // of squared deviations, one for each output
  DType target_dtype = DType::int64;
  Combination combination = Combination::sum;
  std::int64_t outputs = 0;
  std::int64_t count = 0;
  std::int64_t splits = 1;
  std::int64_t split_size = 0;
  int lanes = 1;
  int column_threads = 0;
  bool vectors = false;  // 16-byte loads: rows, or by columns stretches of columns, are aligned
  bool vector_store = false;  // by columns, to an aligned target of the source's dtype
  bool flips_input = false;
  Finish finish;  // nothing where there are splits
  IndexMap<1> kept;
  IndexMap<1> reduced;
};

/// Two sums, squared ones too, or two maxima; which is known at run time.
struct AnyCombination {
  Combination of;
  template <class C>
  __device__ __forceinline__ C operator()(C a, C b) const {
    return of == Combination::maximum ? nan_max(a, b) : a + b;
  }
};

template <class Op>
__device__ __forceinline__ Op make_op(const ReduceParams& p) {
  if constexpr (std::is_same_v<Op, Sum>)
    return {};
  else
    return {p.combination};
}

template <class Acc>
__host__ __device__ constexpr Acc identity_of(Combination combination) {
  if (combination != Combination::maximum) return Acc(0);
  if constexpr (std::is_floating_point_v<Acc>)
    return -std::numeric_limits<Acc>::infinity();
  else
    return std::numeric_limits<Acc>::lowest();
}

template <class Op, class Acc>
__device__ __forceinline__ Acc identity_of(const ReduceParams& p) {
  return std::is_same_v<Op, Sum> ? Acc(0) : identity_of<Acc>(p.combination);
}

/// Reverses the order of values: exact and its own inverse.
template <class C>
__device__ __forceinline__ C flipped(C value) {
  if constexpr (std::is_floating_point_v<C>)
    return -value;
  else
    return static_cast<C>(~value);
}

template <class Op, class Acc>
__device__ __forceinline__ Acc center_of(const ReduceParams& p, std::int64_t output) {
  if (std::is_same_v<Op, Sum> || p.centers == nullptr) return Acc(0);
  return static_cast<const Acc*>(p.centers)[output];
}

/// Adds the first `count` packs to `sums` in order; element i of each to sum i modulo kSums.
template <class Op, class E, int kPacks, int kLength, int kCenters, int kSums, class Acc>
__device__ __forceinline__ void accumulate(const ReduceParams& p,
                                           const Pack<E, kLength> (&packs)[kPacks], int count,
                                           const Acc (&centers)[kCenters], Acc (&sums)[kSums]) {
  const auto add_each = [&](auto add) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (k >= count) break;
#pragma unroll
      for (int i = 0; i < kLength; ++i) {
        Acc& sum = sums[i % kSums];
        sum = add(sum, static_cast<Acc>(widen(packs[k].item[i])), centers[i % kCenters]);
      }
    }
  };
  const auto add = [](Acc sum, Acc x, Acc) { return sum + x; };
  if constexpr (std::is_same_v<Op, Sum>) {
    add_each(add);
  } else if (p.combination == Combination::maximum) {
    add_each([flips = p.flips_input](Acc largest, Acc x, Acc) {
      return nan_max(largest, flips ? flipped(x) : x);
    });
  } else if constexpr (std::is_integral_v<Acc>) {
    add_each(add);
  } else {
    add_each([](Acc sum, Acc x, Acc center) { return sum + (x - center) * (x - center); });
  }
}

template <class Acc>
__device__ __forceinline__ Acc finished(const Finish& finish, Acc value) {
  if constexpr (std::is_floating_point_v<Acc>) {
    if (finish.divides) value /= static_cast<Acc>(finish.divisor);
  }
  return finish.flips ? flipped(value) : value;
}

/// target[place] = value, as an element of `dtype`.
template <class Acc>
__device__ __forceinline__ void store_result(DType dtype, void* target, std::int64_t place,
                                             Acc value) {
  if constexpr (std::is_floating_point_v<Acc>) return store_as(dtype, target, place, value);
  switch (dtype) {
    case DType::int64: static_cast<std::int64_t*>(target)[place] = value; break;
    case DType::int32: static_cast<std::int32_t*>(target)[place] = value; break;
    default: static_cast<std::uint8_t*>(target)[place] = value; break;
  }
}

/// finish of launch_column_totals.
struct StoreFinished {
  void* target;
  DType dtype;
  Finish finish;
  template <class Acc>
  __device__ __forceinline__ void operator()(std::int64_t column, Acc total) const {
    store_result(dtype, target, column, finished(finish, total));
  }
};

/// A lane's share of an output's inputs from `begin` on; `base` is the place of input 0.
template <class Op, class T, int kSums, class Acc>
__device__ __forceinline__ void sum_row(const ReduceParams& p, std::int64_t base, int lane,
                                        std::int64_t begin, std::int64_t end, Acc center,
                                        Acc (&sums)[kSums]) {
  constexpr int kLength = vector_length<T>;
  constexpr int kUnrolled = std::is_same_v<Op, Sum> ? 4 : 1;
  const Acc centers[1] = {center};
  const auto add_single = [&](std::int64_t at) {
    const Pack<T, 1> single[1] = {{static_cast<const T*>(p.source)[base + at]}};
    accumulate<Op>(p, single, 1, centers, sums);
  };
  std::int64_t singles = begin;
  if (p.vectors) {
    const T* row = static_cast<const T*>(p.source) + base;
    singles = begin + (end - begin) / kLength * kLength;
    const int step = p.lanes * kLength;
    std::int64_t r = begin + lane * kLength;
    if constexpr (!std::is_same_v<Op, Sum>) {
      // A test between two loads would keep the second from running ahead.
      for (; r + 3 * step < singles; r += 4 * step) {
        Pack<T, kLength> packs[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) packs[k] = load_pack<T, kLength>(row + r + k * step);
        accumulate<Op>(p, packs, 4, centers, sums);
      }
    }
#pragma unroll kUnrolled
    for (; r < singles; r += step) {
      const Pack<T, kLength> pack[1] = {load_pack<T, kLength>(row + r)};
      accumulate<Op>(p, pack, 1, centers, sums);
    }
  }
  if (p.reduced.rank == 1) {
    const std::int64_t stride = p.reduced.inner_stride(0);
#pragma unroll 4
    for (std::int64_t r = singles + lane; r < end; r += p.lanes) add_single(r * stride);
    return;
  }
#pragma unroll 1
  for (std::int64_t r = singles + lane; r < end; r += p.lanes) {
    std::int64_t offset[1];
    p.reduced.offsets(r, offset);
    add_single(offset[0]);
  }
}

/// Blocks of reduce_rows_kernel that a multiprocessor should hold: enough loads in flight.
template <class T>
inline constexpr int resident_row_blocks = sizeof(Accumulator<T>) == 8 ? 4 : 5;

/// One group of lanes an output (or a split of one).
template <class Op, class T>
__global__ void __launch_bounds__(kReduceThreads, resident_row_blocks<T>)
    reduce_rows_kernel(const ReduceParams p) {
  using Acc = Accumulator<T>;
  __shared__ Acc scratch[kWarp];
  constexpr int kSums = vector_length<T> < 4 ? vector_length<T> : 4;
  const Op op = make_op<Op>(p);
  const int lane = static_cast<int>(threadIdx.x) % p.lanes;
  const std::int64_t group =
      block_index() * (kReduceThreads / p.lanes) + static_cast<int>(threadIdx.x) / p.lanes;
  const bool active = group < p.outputs * p.splits;
  Acc sums[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = identity_of<Op, Acc>(p);
  if (active) {
    const std::int64_t output = group / p.splits;
    const std::int64_t begin = (group - output * p.splits) * p.split_size;
    const std::int64_t end = begin + p.split_size < p.count ? begin + p.split_size : p.count;
    std::int64_t base[1];
    p.kept.offsets(output, base);
    sum_row<Op, T>(p, base[0], lane, begin, end, center_of<Op, Acc>(p, output), sums);
  }
#pragma unroll
  for (int i = 1; i < kSums; ++i) sums[0] = op(sums[0], sums[i]);
  const Acc total = group_reduce(sums[0], p.lanes, scratch, op);
  if (active && lane == 0) store_result(p.target_dtype, p.target, group, finished(p.finish, total));
}

/// This thread's results for neighbouring outputs from `column` on.
template <class T, int kLength, class Acc>
__device__ __forceinline__ void write_columns(const ReduceParams& p, std::int64_t split,
                                              std::int64_t column, Acc (&sums)[kLength]) {
#pragma unroll
  for (int i = 0; i < kLength; ++i) sums[i] = finished(p.finish, sums[i]);
  if constexpr (kLength > 1) {
    if (p.vector_store) return store_narrowed(static_cast<T*>(p.target) + column, sums);
  }
#pragma unroll
  for (int i = 0; i < kLength; ++i) {
    store_result(p.target_dtype, p.target, split * p.outputs + column + i, sums[i]);
  }
}

/// kLength neighbouring columns of one row.
template <class T, int kLength>
__device__ __forceinline__ Pack<T, kLength> load_columns(const ReduceParams& p, std::int64_t at) {
  const T* source = static_cast<const T*>(p.source) + at;
  if (kLength > 1 && p.vectors) return load_pack<T, kLength>(source);
  Pack<T, kLength> pack;
#pragma unroll
  for (int i = 0; i < kLength; ++i) pack.item[i] = source[i];
  return pack;
}

/// A thread's columns `at` and after, of rows r and after that are row_lanes apart.
template <class Op, class T, int kLength, class Acc>
__device__ __forceinline__ void sum_columns(const ReduceParams& p, std::int64_t at, std::int64_t r,
                                            std::int64_t end, int row_lanes,
                                            const Acc (&centers)[kLength], Acc (&sums)[kLength]) {
  constexpr int kAtOnce = kLength > 1 ? 8 : 4;  // loads in flight
  if (p.reduced.rank == 1 && (kLength == 1 || p.vectors)) {
    // Rows at one stride: loads need no divisions between them and, while all are there, no tests.
    const std::int64_t step = row_lanes * p.reduced.strides[0][0];
    const T* rows = static_cast<const T*>(p.source) + at + r * p.reduced.strides[0][0];
    Pack<T, kLength> packs[kAtOnce];
    for (; r + (kAtOnce - 1) * row_lanes < end; r += kAtOnce * row_lanes) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) packs[k] = load_pack<T, kLength>(rows + k * step);
      rows += kAtOnce * step;
      accumulate<Op>(p, packs, kAtOnce, centers, sums);
    }
    int count = 0;
#pragma unroll
    for (int k = 0; k + 1 < kAtOnce; ++k) {
      if (r + k * row_lanes >= end) break;
      packs[k] = load_pack<T, kLength>(rows + k * step);
      count = k + 1;
    }
    return accumulate<Op>(p, packs, count, centers, sums);
  }
  constexpr int kStrided = 4;
  for (; r < end; r += kStrided * row_lanes) {
    Pack<T, kLength> packs[kStrided];
    int count = 0;
#pragma unroll
    for (int k = 0; k < kStrided; ++k) {
      if (r + k * row_lanes >= end) break;
      std::int64_t offset[1];
      p.reduced.offsets(r + k * row_lanes, offset);
      packs[k] = load_columns<T, kLength>(p, at + offset[0]);
      count = k + 1;
    }
    accumulate<Op>(p, packs, count, centers, sums);
  }
}

/// column_threads threads of a block have kLength neighbouring outputs each, which the threads that have
/// the same ones share row by row.
template <class Op, class T, int kLength>
__global__ void __launch_bounds__(kReduceThreads) reduce_columns_kernel(const ReduceParams p) {
  using Acc = Accumulator<T>;
  __shared__ Acc partial[kLength][kReduceThreads];
  const Op op = make_op<Op>(p);
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
  for (int i = 0; i < kLength; ++i) sums[i] = identity_of<Op, Acc>(p);
  if (column < p.outputs) {
    const std::int64_t begin = split * p.split_size;
    const std::int64_t end = begin + p.split_size < p.count ? begin + p.split_size : p.count;
    std::int64_t base[1];
    p.kept.offsets(column, base);
#pragma unroll
    for (int i = 0; i < kLength; ++i) centers[i] = center_of<Op, Acc>(p, column + i);
    sum_columns<Op, T>(p, base[0], begin + y, end, row_lanes, centers, sums);
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
  if (y == 0 && column < p.outputs) write_columns<T>(p, split, column, sums);
}

/// Whether each output's inputs are one contiguous stretch that starts at a 16-byte boundary.
bool has_aligned_rows(const ReducePlan& plan, const void* source, std::int64_t length) {
  if (plan.reduced.sizes.size() != 1 || plan.reduced.strides[0][0] != 1) return false;
  for (std::int64_t stride : plan.kept.strides[0]) {
    if (stride % length != 0 && plan.outputs > 1) return false;
  }
  return is_aligned(source, kVectorBytes);
}

ReduceParams params_of(const ReducePlan& plan, const TensorView& source, const TensorView& target) {
  const auto length = static_cast<std::int64_t>(kVectorBytes / size_of(source.dtype));
  ReduceParams p;
  p.source = source.data;
  p.target = target.data;
  p.target_dtype = target.dtype;
  p.outputs = plan.outputs;
  p.count = plan.count;
  p.splits = plan.splits;
  p.split_size = plan.split_size;
  p.lanes = plan.lanes;
  p.column_threads = plan.column_threads;
  p.vectors = plan.by_columns ? is_aligned(source.data, kVectorBytes)
                              : has_aligned_rows(plan, source.data, length);
  p.vector_store = plan.columns > 1 && plan.splits == 1 && target.dtype == source.dtype &&
                   is_aligned(target.data, kVectorBytes);
  p.kept = IndexMap<1>(plan.kept);
  p.reduced = IndexMap<1>(plan.reduced);
  return p;
}

using ReduceKernel = void (*)(ReduceParams);

template <class Op, class T>
ReduceKernel kernel_of(const ReducePlan& plan) {
  if (!plan.by_columns) return reduce_rows_kernel<Op, T>;
  if constexpr (!std::is_integral_v<T>) {
    if (plan.columns > 1) return reduce_columns_kernel<Op, T, vector_length<T>>;
  }
  return reduce_columns_kernel<Op, T, 1>;
}

ReduceKernel kernel_of(const ReducePlan& plan, Combination combination, DType dtype) {
  switch (dtype) {
    case DType::int64: return kernel_of<AnyCombination, std::int64_t>(plan);
    case DType::int32: return kernel_of<AnyCombination, std::int32_t>(plan);
    case DType::uint8:
    case DType::boolean:  // a byte of 0 or 1
      return kernel_of<AnyCombination, std::uint8_t>(plan);
    default:
      return dispatch_float(dtype, [&]<typename T>() {
        return combination == Combination::sum ? kernel_of<Sum, T>(plan)
                                               : kernel_of<AnyCombination, T>(plan);
      });
  }
}

/// Calls f.operator()<Acc>() with the type that elements of `dtype` are combined in.
template <class F>
void dispatch_accumulator(DType dtype, F&& f) {
  if (!is_floating(dtype)) return f.template operator()<std::int64_t>();
  dispatch_compute(dtype, f);
}

/// A reduction but for its operands.
struct Reduction {
  Combination combination = Combination::sum;
  Finish finish;
  const void* centers = nullptr;  // ReduceParams
};

/// Combines the parts of each output that `plan`'s splits left.
void combine_splits(Stream stream, const char* name, const ReducePlan& plan, const void* parts,
                    const TensorView& target, const Reduction& reduction) {
  const bool is_sum = reduction.combination != Combination::maximum;
  dispatch_accumulator(target.dtype, [&]<typename Acc>() {
    if (plan.by_columns) {
      const StoreFinished store{target.data, target.dtype, reduction.finish};
      const Acc identity = identity_of<Acc>(reduction.combination);
      return is_sum ? launch_column_totals<Sum>(stream, name, parts, plan.splits, plan.outputs,
                                                identity, store)
                    : launch_column_totals<NanMax>(stream, name, parts, plan.splits, plan.outputs,
                                                   identity, store);
    }
    TensorView totals;
    totals.data = const_cast<void*>(parts);
    totals.dtype = dtype_of<Acc>;
    totals.sizes = {plan.outputs, plan.splits};
    totals.strides = {plan.splits, 1};
    const ReducePlan second = plan_reduction(totals, {1});
    ReduceParams p = params_of(second, totals, target);
    p.finish = reduction.finish;
    p.combination = is_sum ? Combination::sum : Combination::maximum;
    launch(stream, name, kernel_of(second, p.combination, totals.dtype), second.blocks,
           kReduceThreads, 0, p);
  });
}

/// Reduces the axes that `plan` reduces of `source`; `parts` holds partial_count(plan) values.
void reduce(Stream stream, const char* name, const ReducePlan& plan, const TensorView& source,
            const TensorView& target, void* parts, const Reduction& reduction) {
  if (plan.outputs == 0) return;
  TensorView result = target;
  if (plan.splits > 1) {
    result.data = parts;
    dispatch_accumulator(source.dtype, [&]<typename Acc>() { result.dtype = dtype_of<Acc>; });
  }
  ReduceParams p = params_of(plan, source, result);
  p.combination = reduction.combination;
  p.centers = reduction.centers;
  p.flips_input = reduction.finish.flips;
  if (plan.splits == 1) p.finish = reduction.finish;
  launch(stream, name, kernel_of(plan, reduction.combination, source.dtype), plan.blocks,
         kReduceThreads, 0, p);
  if (plan.splits > 1) combine_splits(stream, name, plan, parts, target, reduction);
}

void reduce(const KernelArgs& args, const Reduction& reduction) {
  const ReducePlan plan = plan_reduction(args.inputs[0], args.attributes<ReduceAttrs>().dim);
  reduce(stream_of(args), args.name(), plan, args.inputs[0], args.outputs[0], args.workspace,
         reduction);
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

void run_sum(const KernelArgs& args) { reduce(args, {}); }

void run_mean(const KernelArgs& args) {
  const std::int64_t outputs = args.outputs[0].numel();
  if (outputs == 0) return;
  const auto count = static_cast<double>(args.inputs[0].numel() / outputs);
  reduce(args, {.finish = {.divides = true, .divisor = count}});
}

void run_var(const KernelArgs& args) {
  const std::int64_t outputs = args.outputs[0].numel();
  if (outputs == 0) return;
  const auto& attrs = args.attributes<VarAttrs>();
  const TensorView& input = args.inputs[0];
  const auto count = static_cast<double>(input.numel() / outputs);
  const ReducePlan plan = plan_reduction(input, attrs.dim);
  auto* parts = static_cast<std::byte*>(args.workspace);
  TensorView means = args.outputs[0];
  means.data = parts + bytes_of_partials(partial_count(plan), input.dtype);
  means.dtype = input.dtype == DType::float64 ? DType::float64 : DType::float32;
  const Stream stream = stream_of(args);
  reduce(stream, "var", plan, input, means, parts, {.finish = {.divides = true, .divisor = count}});
  // As in PyTorch, a correction beyond the count divides by 0.
  const double divisor = count > attrs.correction ? count - attrs.correction : 0;
  reduce(stream, "var", plan, input, args.outputs[0], parts,
         {Combination::squared_deviations, {.divides = true, .divisor = divisor}, means.data});
}

/// Partial results, then the means.
std::size_t var_workspace(const KernelArgs& args) {
  const ReducePlan plan = plan_reduction(args.inputs[0], args.attributes<VarAttrs>().dim);
  return bytes_of_partials(partial_count(plan) + plan.outputs, args.inputs[0].dtype);
}

void run_amax(const KernelArgs& args) {
  require_elements(args);
  reduce(args, {.combination = Combination::maximum});
}

void run_amin(const KernelArgs& args) {
  require_elements(args);
  reduce(args, {.combination = Combination::maximum, .finish = {.flips = true}});
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
  register_reduction("amax", "cuda.amax", run_amax, reduce_workspace);
  register_reduction("amin", "cuda.amin", run_amin, reduce_workspace);
}

}  // namespace tenon::cuda
