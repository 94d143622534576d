// Gradients of layer_norm, rms_norm and bias_dropout_residual_layer_norm over contiguous rows, in one pass
// over memory and a small second launch.
//
// Rows stream through blocks that stay (device/row_stream.cuh); a row, its gradient and this thread's part of
// the column sums (Σ grad·x̂, Σ grad, and for the fused op Σ of the input's gradient) are in registers,
// statistics are computed again.
// Each block writes its part of the sums once, and device/column_totals.cuh adds the parts in order: there
// are no atomics, so results are the same from run to run. Rows that are unaligned, or too long for the
// registers of a block, are read again in each pass, and their column sums are a pass of their own.
#include "cuda/device/any_float.cuh"
#include "cuda/device/column_totals.cuh"
#include "cuda/device/norm.cuh"
#include "cuda/device/norm_tail.cuh"
#include "cuda/kernels/register.h"
#include "tensor/calls/wanted_gradients.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::cuda {
namespace {

struct NormBackwardParams {
  const void* grad = nullptr;
  const void* input = nullptr;
  const void* weight = nullptr;   // (cols) or null
  const void* addend = nullptr;   // added to the first gradient that is wanted; null: nothing is
  void* input_grad = nullptr;     // (rows, cols) or null: not wanted
  void* residual_grad = nullptr;  // (rows, cols) or null: of the fused op, the gradient of the sum
  void* parts = nullptr;          // (blocks or splits, sums, cols) in the compute type, or null
  void* statistics = nullptr;     // NormStatistics of each row, or null; not for held rows
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t rows_of_split = 0;  // ColumnSumPlan
  std::int64_t splits = 1;
  double eps = 0;
  int lanes = 1;  // of rows that are not held
  bool centers = true;
  DType dtype = DType::float32;
};

/// The column sums, in the order in which parts has them.
enum SumIndex { kWeightSum, kNormBiasSum, kBiasSum };
template <bool kTail>
inline constexpr int column_sums = kTail ? 3 : 2;

/// Rows that are copied: the third, if any, is the residual of the fused op, else the addend.
enum Operand { kInput, kGrad, kThird };
/// A thread holds a row, its gradient and the sums.
template <class T, bool kTail>
inline constexpr RowStreamNeeds needs = norm_backward_needs(sizeof(T), 3, kTail);

/// This block's part of the sums, of which each thread holds those of its columns: its groups are
/// added in order, across a warp's lanes and then across warps. Every thread must call it.
template <class T, int kChunks, int kSums>
__device__ __forceinline__ void store_block_sums(const Row<T, kChunks> (&sums)[kSums],
                                                 const RowGroup& group, int cols,
                                                 compute_type<T>* part) {
  using C = compute_type<T>;
  using Ring = RowRing<C, kChunks>;
  constexpr int kWarps = kStreamThreads / kWarp;
  alignas(kVectorBytes) __shared__ C buffer[kWarps][kWarp * kRowGroup];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  // Through this thread's places of the ring, now free, so that one loop serves all sums.
#pragma unroll
  for (int sum = 0; sum < kSums; ++sum) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) Ring::write(sum, chunk, sums[sum].values[chunk]);
  }
#pragma unroll 1
  for (int number = 0; number < kSums * kChunks; ++number) {
    const int sum = number / kChunks;
    const int chunk = number - sum * kChunks;
    C* target = part + sum * cols;
    C values[kRowGroup];
    Ring::read(sum, chunk, values);
    const int first = Row<T, kChunks>::column(group, chunk);
    if (group.lanes > kWarp) {
      if (first < cols) store_narrowed(target + first, values);
      continue;
    }
    for (int offset = group.lanes; offset < kWarp; offset *= 2) {
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) {
        values[i] += __shfl_xor_sync(0xffffffffU, values[i], offset);
      }
    }
    __syncthreads();  // the chunk before may still be read
    if (static_cast<int>(threadIdx.x) % kWarp < group.lanes) {
      store_narrowed(&buffer[warp][group.lane * kRowGroup], values);
    }
    __syncthreads();
    const int base = chunk * group.lanes * kRowGroup;
    for (int i = static_cast<int>(threadIdx.x); i < group.lanes * kRowGroup && base + i < cols;
         i += kStreamThreads) {
      C total = buffer[0][i];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) total += buffer[w][i];
      target[base + i] = total;
    }
  }
}

/// The row x, to be normalized, and g = grad·weight, from their slots.
template <bool kTail, class T, int kChunks>
__device__ __forceinline__ std::uint32_t read_row(const NormBackwardParams& p,
                                                  const TailParams& tail, const RowGroup& group,
                                                  int slot, Row<T, kChunks>& x,
                                                  Row<T, kChunks>& g) {
  using C = compute_type<T>;
  const int cols = static_cast<int>(p.cols);
  RowRing<T, kChunks>::read(group, cols, slot + kInput, x);
  Row<T, kChunks>::for_each_chunk(group, cols, [&](int chunk, int first) {
    C weight[kRowGroup];
    load_vector(static_cast<const T*>(p.weight), first, C(1), weight);
    RowRing<T, kChunks>::read(slot + kGrad, chunk, g.values[chunk]);
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) g.values[chunk][i] *= weight[i];
  });
  if constexpr (kTail) return add_tail(tail, group, cols, slot + kThird, x);
  return 0;
}

/// The gradients of the elements that this thread holds, written, and added to its part of the sums.
template <bool kTail, class T, int kChunks, int kSums>
__device__ __forceinline__ void finish_row(const NormBackwardParams& p, const TailParams& tail,
                                           const RowGroup& group, int slot, std::uint32_t kept,
                                           const NormStatistics<compute_type<T>>& statistics,
                                           const Row<T, kChunks>& normalized,
                                           const Row<T, kChunks>& g,
                                           Row<T, kChunks> (&sums)[kSums]) {
  using C = compute_type<T>;
  using Ring = RowRing<T, kChunks>;
  const std::int64_t start = group.row * p.cols;
  Row<T, kChunks>::for_each_chunk(group, static_cast<int>(p.cols), [&](int chunk, int first) {
    C grad[kRowGroup];  // read again: registers would cost more
    C result[kRowGroup];
    Ring::read(slot + kGrad, chunk, grad);
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      const C x = normalized.values[chunk][i];
      result[i] = statistics.gradient(g.values[chunk][i], x);
      sums[kWeightSum].values[chunk][i] += grad[i] * x;
      sums[kNormBiasSum].values[chunk][i] += grad[i];
    }
    if constexpr (kTail) {
      if (p.residual_grad) {
        store_narrowed(static_cast<T*>(p.residual_grad) + start + first, result);
      }
      const C scale = static_cast<C>(tail.dropout.scale);
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) {
        result[i] = (kept >> (kRowGroup * chunk + i) & 1U) != 0 ? result[i] * scale : C(0);
        sums[kBiasSum].values[chunk][i] += result[i];
      }
    } else if (p.addend) {
      C addend[kRowGroup];
      Ring::read(slot + kThird, chunk, addend);
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) result[i] += addend[i];
    }
    if (p.input_grad) store_narrowed(static_cast<T*>(p.input_grad) + start + first, result);
  });
}

template <class T, int kChunks, bool kTail>
__global__ void __launch_bounds__(largest_stream_block(needs<T, kTail>, kChunks),
                                  resident_stream_blocks(needs<T, kTail>, kChunks))
    norm_backward_held_rows_kernel(const NormBackwardParams p, const TailParams tail,
                                   const RowStream stream) {
  using C = compute_type<T>;
  __shared__ C scratch[2 * kWarp];
  const int cols = static_cast<int>(p.cols);
  Row<T, kChunks> sums[column_sums<kTail>] = {};
  const void* third = kTail ? tail.residual : p.addend;
  const auto start = [&](const RowGroup& group, int slot) {
    const auto copy = [&](const void* source, int operand) {
      RowRing<T, kChunks>::copy(group, cols, static_cast<const T*>(source) + group.row * p.cols,
                                slot + operand);
    };
    copy(p.input, kInput);
    copy(p.grad, kGrad);
    if (third) copy(third, kThird);
  };
  stream_rows(stream, start, [&](const RowGroup& group, int slot) {
    Row<T, kChunks> x;
    Row<T, kChunks> g;
    const std::uint32_t kept = read_row<kTail>(p, tail, group, slot, x, g);
    const NormStatistics<C> statistics =
        normalize_with_gradient(x, g, group, cols, p.eps, p.centers, scratch);
    if (group.active) finish_row<kTail>(p, tail, group, slot, kept, statistics, x, g, sums);
  });
  if (p.parts == nullptr) return;
  constexpr int kFewestOperands = kTail ? 3 : 2;
  static_assert(needs<T, kTail>.values == 2 + column_sums<kTail>);
  constexpr int kDeclared = (2 * kWarp + kStreamThreads * kRowGroup) * sizeof(C);
  static_assert(kDeclared + 1024 <= row_stream_other_bytes(sizeof(T)));
  static_assert(column_sums<kTail> * sizeof(C) <= kRowStreamStages * kFewestOperands * sizeof(T));
  store_block_sums(sums, RowGroup(stream.rows, stream.lanes), cols,
                   static_cast<C*>(p.parts) + block_index() * column_sums<kTail> * p.cols);
}

/// For rows that are read again in each pass; with a tail, rows of p.dtype, which is computed in T.
template <class T, bool kTail>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_backward_rows_kernel(const NormBackwardParams p, const TailParams tail) {
  using C = compute_type<T>;
  constexpr int kUnrolled = kTail ? 1 : 4;
  __shared__ C scratch[2 * kWarp];
  const RowGroup group(p.rows, p.lanes);
  const std::int64_t start = group.row * p.cols;
  const C count = static_cast<C>(p.cols);
  const auto load = [&](const void* data, std::int64_t at) {
    if constexpr (kTail) return load_as<C>(p.dtype, data, at);
    return widen(static_cast<const T*>(data)[at]);
  };
  const auto store = [&](void* data, std::int64_t at, C value) {
    if constexpr (kTail) return store_as(p.dtype, data, at, value);
    static_cast<T*>(data)[at] = convert<T>(value);
  };
  const auto input_at = [&](std::int64_t i) {
    if constexpr (kTail) return value_at<C>(p.dtype, p.input, tail, group.row, i, p.cols);
    return load(p.input, start + i);
  };
  const auto gradient_at = [&](std::int64_t i) {
    const C g = load(p.grad, start + i);
    return p.weight != nullptr ? g * load(p.weight, i) : g;
  };
  C means[2] = {};
  if (p.centers) {
#pragma unroll kUnrolled
    for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
      means[0] += input_at(i);
      means[1] += gradient_at(i);
    }
    group_sums(means, p.lanes, scratch);
    means[0] /= count;
    means[1] /= count;
  }
  C moments[2] = {};
#pragma unroll kUnrolled
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    const C deviation = input_at(i) - means[0];
    moments[0] += deviation * deviation;
    moments[1] += gradient_at(i) * deviation;
  }
  group_sums(moments, p.lanes, scratch);
  if (!group.active) return;
  const C factor = C(1) / sqrt_of(moments[0] / count + static_cast<C>(p.eps));
  const NormStatistics<C> statistics{means[0], factor, means[1], moments[1] / count * factor};
  if (p.statistics != nullptr && group.lane == 0) {
    static_cast<NormStatistics<C>*>(p.statistics)[group.row] = statistics;
  }
  if (p.input_grad == nullptr && p.residual_grad == nullptr) return;
#pragma unroll kUnrolled
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    C result = statistics.gradient(gradient_at(i), (input_at(i) - means[0]) * factor);
    if constexpr (kTail) {
      if (p.residual_grad) store(p.residual_grad, start + i, result);
      const C scale = static_cast<C>(tail.dropout.scale);
      result = is_kept(tail.dropout, group.row, i) ? result * scale : C(0);
    }
    if (p.addend) result += load(p.addend, start + i);
    if (p.input_grad) store(p.input_grad, start + i, result);
  }
}

/// The column sums of such rows over a run of rows, from their statistics; a tail without a bias is
/// none.
template <class C>
__global__ void __launch_bounds__(kColumnsOfBlock* kRowLanes)
    norm_column_parts_kernel(const NormBackwardParams p, const TailParams tail) {
  constexpr int kMostSums = column_sums<true>;
  __shared__ C shared[kMostSums][kRowLanes][kColumnsOfBlock];
  const int x = static_cast<int>(threadIdx.x) % kColumnsOfBlock;
  const int y = static_cast<int>(threadIdx.x) / kColumnsOfBlock;
  const std::int64_t column_block = block_index() / p.splits;
  const std::int64_t split = block_index() - column_block * p.splits;
  const std::int64_t column = column_block * kColumnsOfBlock + x;
  const bool active = column < p.cols;
  const bool has_tail = tail.bias != nullptr;
  C sums[kMostSums] = {};
  if (active) {
    const std::int64_t begin = split * p.rows_of_split;
    const std::int64_t end = begin + p.rows_of_split < p.rows ? begin + p.rows_of_split : p.rows;
    const C weight = p.weight != nullptr ? load_as<C>(p.dtype, p.weight, column) : C(1);
    for (std::int64_t row = begin + y; row < end; row += kRowLanes) {
      const auto& statistics = static_cast<const NormStatistics<C>*>(p.statistics)[row];
      const C g = load_as<C>(p.dtype, p.grad, row * p.cols + column);
      const C value = value_at<C>(p.dtype, p.input, tail, row, column, p.cols);
      const C normalized = (value - statistics.mean) * statistics.factor;
      sums[kWeightSum] += g * normalized;
      sums[kNormBiasSum] += g;
      if (has_tail && is_kept(tail.dropout, row, column)) {
        sums[kBiasSum] +=
            statistics.gradient(g * weight, normalized) * static_cast<C>(tail.dropout.scale);
      }
    }
  }
#pragma unroll
  for (int sum = 0; sum < kMostSums; ++sum) shared[sum][y][x] = sums[sum];
  __syncthreads();
  if (y > 0 || !active) return;
  const int count = has_tail ? column_sums<true> : column_sums<false>;
  for (int sum = 0; sum < count; ++sum) {
    C total = shared[sum][0][x];
    for (int i = 1; i < kRowLanes; ++i) total += shared[sum][i][x];
    static_cast<C*>(p.parts)[(split * count + sum) * p.cols + column] = total;
  }
}

/// The gradients that are column sums; null where not wanted.
struct SumTargets {
  const TensorView* of[3] = {};  // by SumIndex
  const void* addends[3] = {};   // (cols) or null
  bool any() const { return of[kWeightSum] || of[kNormBiasSum] || of[kBiasSum]; }
};

/// Stores a total at its place among the sums' vectors.
struct StoreSums {
  void* targets[3] = {};
  const void* addends[3] = {};
  std::int64_t cols = 0;
  DType dtype = DType::float32;

  StoreSums(const SumTargets& wanted, std::int64_t columns, DType of) : cols(columns), dtype(of) {
    for (int i = 0; i < 3; ++i) {
      if (wanted.of[i] != nullptr) targets[i] = wanted.of[i]->data;
      addends[i] = wanted.addends[i];
    }
  }
  template <class C>
  __device__ __forceinline__ void operator()(std::int64_t column, C total) const {
    const std::int64_t sum = column / cols;
    const std::int64_t i = column - sum * cols;
    if (addends[sum] != nullptr) total += load_as<C>(dtype, addends[sum], i);
    if (targets[sum] != nullptr) store_as(dtype, targets[sum], i, total);
  }
};

/// Rows and columns, and how a call is laid over threads; of sizes and the GPU's limits alone.
struct NormBackwardSizes {
  std::int64_t rows = 0;
  std::int64_t cols = 1;
  RowStreamPlan held;
  ColumnSumPlan columns;  // where rows are not held

  NormBackwardSizes(const TensorView& input, std::int64_t axes, int operands, bool has_tail) {
    for (std::int64_t i = 1; i <= axes; ++i) cols *= input.size(static_cast<int>(-i));
    rows = cols == 0 ? 0 : input.numel() / cols;
    if (rows == 0) return;
    dispatch_float(input.dtype, [&]<typename T>() {
      held = plan_row_stream(rows, cols, norm_backward_needs(sizeof(T), operands, has_tail),
                             device_limits(input.device.index));
    });
    columns = plan_column_sums(rows, cols);
  }
};

template <bool kTail>
std::size_t workspace_of(const NormBackwardSizes& sizes, DType dtype) {
  if (sizes.rows == 0) return 0;
  constexpr int kSums = column_sums<kTail>;
  const std::int64_t held = sizes.held.fits ? sizes.held.blocks * kSums * sizes.cols : 0;
  const std::int64_t read_again = sizes.columns.splits * kSums * sizes.cols + 4 * sizes.rows;
  return static_cast<std::size_t>(held > read_again ? held : read_again) *
         (dtype == DType::float64 ? 8 : 4);
}

bool rows_are_aligned(const NormBackwardParams& p, const TailParams& tail) {
  bool aligned = p.cols % kRowGroup == 0;
  for (const void* data :
       {p.grad, p.input, p.weight, p.addend, tail.bias, tail.residual,
        static_cast<const void*>(p.input_grad), static_cast<const void*>(p.residual_grad)}) {
    aligned = aligned && is_aligned(data, kVectorBytes);
  }
  return aligned;
}

/// Launches the rows' kernel and, where sums are wanted, theirs; returns the number of parts.
template <class T, bool kTail>
std::int64_t run_rows(Stream stream, const char* name, const NormBackwardSizes& sizes,
                      NormBackwardParams p, const TailParams& tail) {
  if (sizes.held.fits && rows_are_aligned(p, tail)) {
    const RowStreamPlan& held = sizes.held;
    const auto kernel = for_chunks<T>(held.chunks, []<int kChunks>() {
      return norm_backward_held_rows_kernel<T, kChunks, kTail>;
    });
    launch(stream, name, kernel, held.blocks, held.threads, held.shared_bytes, p, tail,
           RowStream(p.rows, held));
    return held.blocks;
  }
  p.splits = sizes.columns.splits;
  p.rows_of_split = sizes.columns.rows_of_split;
  if (p.parts != nullptr) {
    p.statistics = static_cast<compute_type<T>*>(p.parts) + p.splits * column_sums<kTail> * p.cols;
  }
  const RowPlan plan = plan_rows(p.rows, p.cols, row_chunks<T>);
  p.lanes = plan.lanes;
  using Rows = std::conditional_t<kTail, compute_type<T>, T>;
  launch(stream, name, norm_backward_rows_kernel<Rows, kTail>, plan.blocks, plan.threads, 0, p,
         tail);
  if (p.parts != nullptr) {
    launch(stream, name, norm_column_parts_kernel<compute_type<T>>, sizes.columns.blocks,
           kColumnsOfBlock * kRowLanes, 0, p, tail);
  }
  return p.splits;
}

template <bool kTail>
void run(const KernelArgs& args, const NormBackwardSizes& sizes, NormBackwardParams p,
         const TailParams& tail, const SumTargets& targets) {
  if (sizes.cols == 0) return;
  const Stream stream = stream_of(args);
  p.rows = sizes.rows;
  p.cols = sizes.cols;
  p.dtype = args.inputs[0].dtype;
  p.parts = targets.any() ? args.workspace : nullptr;
  const char* name = args.name();
  dispatch_float(p.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const std::int64_t parts =
        sizes.rows > 0 ? run_rows<T, kTail>(stream, name, sizes, p, tail) : 0;
    if (!targets.any()) return;
    launch_column_totals<Sum>(stream, name, p.parts, parts, column_sums<kTail> * p.cols, C(0),
                              StoreSums(targets, p.cols, p.dtype));
  });
}

const void* data_of(const KernelArgs& args, std::size_t i) {
  return i < args.inputs.size() && args.inputs[i].present ? args.inputs[i].data : nullptr;
}
void* data_of(const TensorView* view) { return view != nullptr ? view->data : nullptr; }

NormBackwardSizes norm_sizes(const KernelArgs& args) {
  const bool adds = args.inputs.size() > 3 && args.inputs[3].present;
  return {args.inputs[1], args.attributes<NormBackwardAttrs>().axes, adds ? 3 : 2,
          /*has_tail=*/false};
}

std::size_t norm_workspace(const KernelArgs& args) {
  const auto& attrs = args.attributes<NormBackwardAttrs>();
  return attrs.weight || attrs.bias ? workspace_of<false>(norm_sizes(args), args.inputs[1].dtype)
                                    : 0;
}

/// Operands grad, input, weight (optional) and, in the ops that accumulate, an addend.
template <bool kCenters>
void run_norm_backward(const KernelArgs& args) {
  const auto& attrs = args.attributes<NormBackwardAttrs>();
  const ops::WantedGradients wanted(args, attrs);
  NormBackwardParams p{data_of(args, 0), data_of(args, 1), data_of(args, 2)};
  p.input_grad = data_of(wanted.input);
  p.eps = attrs.eps;
  p.centers = kCenters;
  SumTargets targets{.of = {wanted.weight, wanted.bias}};
  (wanted.input    ? p.addend
   : wanted.weight ? targets.addends[kWeightSum]
                   : targets.addends[kNormBiasSum]) = data_of(args, 3);
  run<false>(args, norm_sizes(args), p, {}, targets);
}

NormBackwardSizes residual_norm_sizes(const KernelArgs& args) {
  return {args.inputs[1], 1, 3, /*has_tail=*/true};
}

std::size_t residual_norm_workspace(const KernelArgs& args) {
  const auto& attrs = args.attributes<ResidualNormBackwardAttrs>();
  return attrs.bias || attrs.weight || attrs.norm_bias
             ? workspace_of<true>(residual_norm_sizes(args), args.inputs[1].dtype)
             : 0;
}

/// Operands grad, input, bias, residual and weight.
void run_residual_norm_backward(const KernelArgs& args) {
  const auto& attrs = args.attributes<ResidualNormBackwardAttrs>();
  const ops::WantedResidualNormGradients wanted(args, attrs);
  NormBackwardParams p{data_of(args, 0), data_of(args, 1), data_of(args, 4)};
  p.input_grad = data_of(wanted.input);
  p.residual_grad = data_of(wanted.residual);
  p.eps = attrs.eps;
  const TailParams tail{data_of(args, 2), data_of(args, 3),
                        dropout_params(attrs.p, attrs.mode, attrs.site, args)};
  run<true>(args, residual_norm_sizes(args), p, tail,
            {.of = {wanted.weight, wanted.norm_bias, wanted.bias}});
}

}  // namespace

void register_layer_norm_backward_kernels() {
  const auto add = [](std::string_view op, std::string_view name, void (*run)(const KernelArgs&)) {
    register_kernel(op, DeviceType::cuda,
                    {.name = name, .run = run, .workspace_bytes = norm_workspace});
  };
  add("layer_norm_backward", "cuda.layer_norm_backward", run_norm_backward<true>);
  add("layer_norm_backward_add", "cuda.layer_norm_backward_add", run_norm_backward<true>);
  add("rms_norm_backward", "cuda.rms_norm_backward", run_norm_backward<false>);
  add("rms_norm_backward_add", "cuda.rms_norm_backward_add", run_norm_backward<false>);
  register_kernel("bias_dropout_residual_layer_norm_backward", DeviceType::cuda,
                  {.name = "cuda.bias_dropout_residual_layer_norm_backward",
                   .run = run_residual_norm_backward,
                   .workspace_bytes = residual_norm_workspace});
}

}  // namespace tenon::cuda
