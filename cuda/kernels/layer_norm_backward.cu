// Gradients of layer_norm and rms_norm over contiguous rows, in three launches at most. The first computes
// the statistics of each row again and the gradient of the input; the second, over columns, this run of
// rows' sums of grad·x̂ and grad; the third adds those runs in order: there are no atomics, so results are
// the same from run to run.
#include "cuda/context.h"
#include "cuda/device/norm.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/detail/wanted_gradients.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::cuda {
namespace {

struct NormBackwardParams {
  const void* grad = nullptr;
  const void* input = nullptr;
  const void* weight = nullptr;  // (cols) or null
  void* input_grad = nullptr;    // (rows, cols) or null: not wanted
  void* statistics = nullptr;    // (rows, 2) in the compute type: mean and factor; null: not wanted
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  double eps = 0;
  int lanes = 1;
};

template <class T>
__device__ __forceinline__ void store_statistics(const NormBackwardParams& p, const RowGroup& group,
                                                 const RowStatistics<compute_type<T>>& statistics) {
  if (p.statistics == nullptr || !group.active || group.lane != 0) return;
  auto* target = static_cast<compute_type<T>*>(p.statistics) + 2 * group.row;
  target[0] = statistics.mean;
  target[1] = statistics.factor;
}

template <class T, bool kCenters>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_backward_held_rows_kernel(const NormBackwardParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const int cols = static_cast<int>(p.cols);
  Row<T> row;
  row.load(group, cols, static_cast<const T*>(p.input) + group.row * p.cols);
  const RowStatistics<C> statistics = normalize<kCenters>(row, group, cols, p.eps, scratch);
  store_statistics<T>(p, group, statistics);
  if (p.input_grad == nullptr) return;
  Row<T> gradient;
  gradient.load(group, cols, static_cast<const T*>(p.grad) + group.row * p.cols);
  if (p.weight) {
    Row<T>::for_each_chunk(group, cols, [&](int chunk, int first) {
      C weight[kRowGroup];
      load_widened(static_cast<const T*>(p.weight) + first, weight);
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) gradient.values[chunk][i] *= weight[i];
    });
  }
  normalize_backward<kCenters>(gradient, row, group, cols, statistics.factor, scratch);
  if (group.active) {
    gradient.store(group, cols, static_cast<T*>(p.input_grad) + group.row * p.cols);
  }
}

/// For rows that are read again in each pass.
template <class T, bool kCenters>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_backward_rows_kernel(const NormBackwardParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const T* input = static_cast<const T*>(p.input) + group.row * p.cols;
  const T* grad = static_cast<const T*>(p.grad) + group.row * p.cols;
  const T* weight = static_cast<const T*>(p.weight);
  const C count = static_cast<C>(p.cols);
  C mean = C(0);
  if constexpr (kCenters) {
    C sum = C(0);
    for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) sum += widen(input[i]);
    mean = group_reduce(sum, p.lanes, scratch, Sum{}) / count;
  }
  C squares = C(0);
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    const C deviation = widen(input[i]) - mean;
    squares += deviation * deviation;
  }
  const C variance = group_reduce(squares, p.lanes, scratch, Sum{}) / count;
  const C factor = C(1) / sqrt_of(variance + static_cast<C>(p.eps));
  store_statistics<T>(p, group, {mean, factor});
  if (p.input_grad == nullptr) return;

  const auto gradient_at = [&](std::int64_t i) {
    return weight != nullptr ? widen(grad[i]) * widen(weight[i]) : widen(grad[i]);
  };
  C sum = C(0);
  C products = C(0);
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    const C g = gradient_at(i);
    sum += g;
    products += g * ((widen(input[i]) - mean) * factor);
  }
  const C shift = kCenters ? group_reduce(sum, p.lanes, scratch, Sum{}) / count : C(0);
  const C slope = group_reduce(products, p.lanes, scratch, Sum{}) / count;
  if (!group.active) return;
  T* target = static_cast<T*>(p.input_grad) + group.row * p.cols;
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    const C normalized = (widen(input[i]) - mean) * factor;
    target[i] = convert<T>(factor * (gradient_at(i) - shift - normalized * slope));
  }
}

struct ColumnSumParams {
  const void* grad = nullptr;
  const void* input = nullptr;
  const void* statistics = nullptr;  // null: only Σ grad is wanted
  void* parts = nullptr;             // (splits, 2, cols): Σ grad·x̂ and Σ grad
  void* weight_grad = nullptr;       // (cols) or null
  void* bias_grad = nullptr;         // (cols) or null
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t splits = 1;
  std::int64_t rows_of_split = 0;
};

template <class T>
__global__ void __launch_bounds__(kColumnsOfBlock* kRowLanes)
    norm_column_parts_kernel(const ColumnSumParams p) {
  using C = compute_type<T>;
  __shared__ C shared[2][kRowLanes][kColumnsOfBlock];
  const int x = static_cast<int>(threadIdx.x) % kColumnsOfBlock;
  const int y = static_cast<int>(threadIdx.x) / kColumnsOfBlock;
  const std::int64_t column_block = block_index() / p.splits;
  const std::int64_t split = block_index() - column_block * p.splits;
  const std::int64_t column = column_block * kColumnsOfBlock + x;
  const bool active = column < p.cols;
  C products = C(0);
  C sum = C(0);
  if (active) {
    const std::int64_t begin = split * p.rows_of_split;
    const std::int64_t end = begin + p.rows_of_split < p.rows ? begin + p.rows_of_split : p.rows;
    const C* statistics = static_cast<const C*>(p.statistics);
#pragma unroll 4
    for (std::int64_t row = begin + y; row < end; row += kRowLanes) {
      const C g = widen(static_cast<const T*>(p.grad)[row * p.cols + column]);
      sum += g;
      if (statistics != nullptr) {
        const C value = widen(static_cast<const T*>(p.input)[row * p.cols + column]);
        products += g * ((value - statistics[2 * row]) * statistics[2 * row + 1]);
      }
    }
  }
  shared[0][y][x] = products;
  shared[1][y][x] = sum;
  __syncthreads();
  if (y > 0 || !active) return;
  C* part = static_cast<C*>(p.parts) + 2 * split * p.cols + column;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    C total = shared[which][0][x];
    for (int i = 1; i < kRowLanes; ++i) total += shared[which][i][x];
    part[which * p.cols] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(kColumnsOfBlock* kRowLanes)
    norm_column_totals_kernel(const ColumnSumParams p) {
  using C = compute_type<T>;
  const std::int64_t column = block_index() * kColumnsOfBlock * kRowLanes + threadIdx.x;
  if (column >= p.cols) return;
  C products = C(0);
  C sum = C(0);
  for (std::int64_t split = 0; split < p.splits; ++split) {
    const C* part = static_cast<const C*>(p.parts) + 2 * split * p.cols + column;
    products += part[0];
    sum += part[p.cols];
  }
  if (p.weight_grad != nullptr) static_cast<T*>(p.weight_grad)[column] = convert<T>(products);
  if (p.bias_grad != nullptr) static_cast<T*>(p.bias_grad)[column] = convert<T>(sum);
}

template <class T, bool kCenters>
void run_rows(Stream stream, const char* name, NormBackwardParams p) {
  if (p.input_grad == nullptr && p.statistics == nullptr) return;
  const RowPlan plan = plan_rows(p.rows, p.cols, row_chunks<T>);
  p.lanes = plan.lanes;
  bool held = plan.fits && p.cols % kRowGroup == 0;
  for (const void* data : {p.grad, p.input, p.weight, static_cast<const void*>(p.input_grad)}) {
    held = held && is_aligned(data, kVectorBytes);
  }
  launch(
      stream, name,
      held ? norm_backward_held_rows_kernel<T, kCenters> : norm_backward_rows_kernel<T, kCenters>,
      plan.blocks, plan.threads, 0, p);
}

template <class T>
void run_columns(Stream stream, const char* name, const ColumnSumPlan& plan,
                 const ColumnSumParams& p) {
  launch(stream, name, norm_column_parts_kernel<T>, plan.blocks, kColumnsOfBlock * kRowLanes, 0, p);
  launch(stream, name, norm_column_totals_kernel<T>, ceil_div(p.cols, kColumnsOfBlock * kRowLanes),
         kColumnsOfBlock * kRowLanes, 0, p);
}

void clear(Stream stream, const TensorView* output) {
  if (output == nullptr || output->numel() == 0) return;
  const std::size_t bytes = static_cast<std::size_t>(output->numel()) * size_of(output->dtype);
  TENON_CUDA_CHECK(cudaMemsetAsync(output->data, 0, bytes, stream.handle));
}

template <bool kCenters>
void run_norm_backward(const KernelArgs& args) {
  const auto& attrs = args.attributes<NormBackwardAttrs>();
  const Stream stream = stream_of(args);
  const char* name = args.op->name.c_str();
  const ops::WantedGradients wanted(args, attrs);
  const TensorView& input = args.inputs[1];
  std::int64_t cols = 1;
  for (std::int64_t i = 1; i <= attrs.axes; ++i) cols *= input.size(static_cast<int>(-i));
  const std::int64_t rows = cols == 0 ? 0 : input.numel() / cols;
  if (rows == 0) {
    clear(stream, wanted.weight);
    clear(stream, wanted.bias);
    return;
  }
  dispatch_float(input.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const ColumnSumPlan plan = plan_column_sums(rows, cols);
    const bool sums = wanted.weight != nullptr || wanted.bias != nullptr;
    const ScratchMemory statistics(
        stream.device, wanted.weight ? static_cast<std::size_t>(2 * rows) * sizeof(C) : 0);
    const ScratchMemory parts(
        stream.device, sums ? static_cast<std::size_t>(2 * plan.splits * cols) * sizeof(C) : 0);
    NormBackwardParams p{args.inputs[0].data, input.data};
    p.weight = args.inputs[2].present ? args.inputs[2].data : nullptr;
    p.input_grad = wanted.input ? wanted.input->data : nullptr;
    p.statistics = statistics.data();
    p.rows = rows;
    p.cols = cols;
    p.eps = attrs.eps;
    run_rows<T, kCenters>(stream, name, p);
    if (!sums) return;
    ColumnSumParams q{p.grad, p.input, p.statistics, parts.data()};
    q.weight_grad = wanted.weight ? wanted.weight->data : nullptr;
    q.bias_grad = wanted.bias ? wanted.bias->data : nullptr;
    q.rows = rows;
    q.cols = cols;
    q.splits = plan.splits;
    q.rows_of_split = plan.rows_of_split;
    run_columns<T>(stream, name, plan, q);
  });
}

}  // namespace

void register_layer_norm_backward_kernels() {
  register_kernel("layer_norm_backward", DeviceType::cuda,
                  {.name = "cuda.layer_norm_backward", .run = run_norm_backward<true>});
  register_kernel("rms_norm_backward", DeviceType::cuda,
                  {.name = "cuda.rms_norm_backward", .run = run_norm_backward<false>});
}

}  // namespace tenon::cuda
