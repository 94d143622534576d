// sum, mean, var, amax and amin over any axes of an input of any strides, accumulated in float32
// (float64 for float64, int64 for sums of integers). var takes two passes, the mean first. The order of combination is fixed by sizes and strides
// (kernels/reduce_plan.h), so results are the same from run to run; a few outputs with many inputs
// each take a second pass over partial results.
#include <algorithm>
#include <limits>

#include "cuda/context.h"
#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/reduce_plan.h"
#include "cuda/kernels/register.h"
#include "tensor/ops/indexing_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kColumnLanes = kReduceThreads / kReduceColumns;  // threads that share an output

struct ReduceParams {
  const void* source = nullptr;
  void* target = nullptr;  // Out, or Acc where there are splits: [outputs, splits]
  std::int64_t outputs = 0;
  std::int64_t count = 0;
  std::int64_t splits = 1;
  std::int64_t split_size = 0;
  int lanes = 1;
  bool vectors = false;      // rows are contiguous and aligned
  bool divides = false;      // mean, var
  bool flips_input = false;  // a minimum is the maximum of order-reversed values
  bool flips_output = false;
  double divisor = 1;
  const void* centers = nullptr;  // SquaredDeviation: an Acc for each output
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
__device__ __forceinline__ Acc identity_of() {
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
    return static_cast<const Acc*>(p.centers)[output];
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
__device__ __forceinline__ void write(const ReduceParams& p, std::int64_t group, Acc value) {
  if (p.splits > 1) {
    static_cast<Acc*>(p.target)[group] = value;
    return;
  }
  if constexpr (is_sum<Op>) {
    if constexpr (std::is_floating_point_v<Acc>) {
      if (p.divides) value /= static_cast<Acc>(p.divisor);
    }
  } else {
    if (p.flips_output) value = flipped(value);
  }
  static_cast<Out*>(p.target)[group] = convert<Out>(value);
}

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

/// A block serves kReduceColumns neighbouring outputs, kColumnLanes threads each.
template <class Op, class T, class Acc, class Out>
__global__ void __launch_bounds__(kReduceThreads) reduce_columns_kernel(const ReduceParams p) {
  __shared__ Acc partial[kColumnLanes][kReduceColumns];
  const Op op{};
  const int x = static_cast<int>(threadIdx.x) % kReduceColumns;
  const int y = static_cast<int>(threadIdx.x) / kReduceColumns;
  const std::int64_t column_block = block_index() / p.splits;
  const std::int64_t split = block_index() - column_block * p.splits;
  const std::int64_t output = column_block * kReduceColumns + x;
  Acc sum = identity_of<Op, Acc>();
  if (output < p.outputs) {
    const std::int64_t begin = split * p.split_size;
    const std::int64_t end = begin + p.split_size < p.count ? begin + p.split_size : p.count;
    std::int64_t base[1];
    p.kept.offsets(output, base);
    const T* column = static_cast<const T*>(p.source) + base[0];
    const Acc center = center_of<Op, Acc>(p, output);
#pragma unroll 4
    for (std::int64_t r = begin + y; r < end; r += kColumnLanes) {
      std::int64_t offset[1];
      p.reduced.offsets(r, offset);
      sum = op(sum, read<Op, Acc>(p, column[offset[0]], center));
    }
  }
  partial[y][x] = sum;
  __syncthreads();
  if (y > 0 || output >= p.outputs) return;
#pragma unroll
  for (int i = 1; i < kColumnLanes; ++i) sum = op(sum, partial[i][x]);
  write<Op, Out>(p, output * p.splits + split, sum);
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
  p.vectors = has_aligned_rows(plan, source, length);
  p.kept = IndexMap<1>(plan.kept);
  p.reduced = IndexMap<1>(plan.reduced);
  return p;
}

/// What is done beside the combination of values: with a total, and before it.
struct Finish {
  bool divides = false;
  bool flips = false;
  double divisor = 1;
  const void* centers = nullptr;
};

template <class Op, class T, class Acc, class Out>
void run_pass(Stream stream, const char* name, const ReducePlan& plan, const ReduceParams& p) {
  if (plan.by_columns) {
    launch(stream, name, reduce_columns_kernel<Op, T, Acc, Out>, plan.blocks, kReduceThreads, 0, p);
  } else {
    launch(stream, name, reduce_rows_kernel<Op, T, Acc, Out>, plan.blocks, kReduceThreads, 0, p);
  }
}

/// Reduces the axes that `plan` reduces of `source`; `target` holds an Out for each output.
template <class Op, class T, class Acc, class Out>
void reduce(Stream stream, const char* name, const ReducePlan& plan, const void* source,
            void* target, const Finish& finish) {
  if (plan.outputs == 0) return;
  ReduceParams p = params_of(plan, source, target, vector_length<T>);
  p.centers = finish.centers;
  p.divides = finish.divides;
  p.divisor = finish.divisor;
  p.flips_input = p.flips_output = finish.flips;
  if (plan.splits == 1) return run_pass<Op, T, Acc, Out>(stream, name, plan, p);

  const ScratchMemory partial(stream.device,
                              static_cast<std::size_t>(plan.outputs * plan.splits) * sizeof(Acc));
  p.target = partial.data();
  run_pass<Op, T, Acc, Out>(stream, name, plan, p);
  TensorView totals;
  totals.sizes = {plan.outputs, plan.splits};
  totals.strides = {plan.splits, 1};
  const ReducePlan second = plan_reduction(totals, {1});
  ReduceParams q = params_of(second, partial.data(), target, vector_length<Acc>);
  q.divides = finish.divides;
  q.divisor = finish.divisor;
  q.flips_output = finish.flips;
  using Total = std::conditional_t<is_sum<Op>, Sum, Op>;
  launch(stream, name, reduce_rows_kernel<Total, Acc, Acc, Out>, second.blocks, kReduceThreads, 0,
         q);
}

template <class Op, class T, class Acc, class Out>
void reduce(const KernelArgs& args, const Finish& finish) {
  const ReducePlan plan = plan_reduction(args.inputs[0], args.attributes<ReduceAttrs>().dim);
  reduce<Op, T, Acc, Out>(stream_of(args), args.op->name.c_str(), plan, args.inputs[0].data,
                          args.outputs[0].data, finish);
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
  dispatch_float(input.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const Stream stream = stream_of(args);
    const ScratchMemory means(stream.device, static_cast<std::size_t>(outputs) * sizeof(C));
    reduce<Sum, T, C, C>(stream, "var", plan, input.data, means.data(),
                         {.divides = true, .divisor = count});
    // As in PyTorch, a correction beyond the count divides by 0.
    reduce<SquaredDeviation, T, C, T>(stream, "var", plan, input.data, args.outputs[0].data,
                                      {.divides = true,
                                       .divisor = std::max(0.0, count - attrs.correction),
                                       .centers = means.data()});
  });
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

void register_reduction(std::string_view op, std::string_view name,
                        void (*run)(const KernelArgs&)) {
  register_kernel(op, DeviceType::cuda, {.name = name, .run = run, .accepts = any_layout});
}

}  // namespace

void register_reduce_kernels() {
  register_reduction("sum", "cuda.sum", run_sum);
  register_reduction("mean", "cuda.mean", run_mean);
  register_reduction("var", "cuda.var", run_var);
  register_reduction("amax", "cuda.amax", run_extremum<false>);
  register_reduction("amin", "cuda.amin", run_extremum<true>);
}

}  // namespace tenon::cuda
