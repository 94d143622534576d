// layer_norm, and bias_dropout_residual_layer_norm = layer_norm(dropout(input + bias) + residual).
// Rows are contiguous. A row is read once and held in registers; its mean, and then the mean of its
// squared deviations, are computed in float32 (float64 for float64) from there. Rows too long for the
// registers of a block are read again in each pass.
#include "cuda/device/rows.cuh"
#include "cuda/kernels/dropout.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/attributes.h"

namespace tenon::cuda {
namespace {

struct NormParams {
  const void* input = nullptr;
  const void* weight = nullptr;     // (cols) or null
  const void* norm_bias = nullptr;  // (cols) or null
  void* output = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  double eps = 0;
  int lanes = 1;
  bool vectors = false;
};

/// What the fused op does to the input before it is normalized.
struct TailParams {
  const void* bias = nullptr;  // (cols) or null
  const void* residual = nullptr;
  DropoutParams dropout;
};

/// dropout(x + bias) + residual of columns [first, first + 8) of a row, in place.
template <class T, class C>
__device__ __forceinline__ void add_tail(const TailParams& tail, std::int64_t row, std::int64_t first,
                                         const C (&bias)[kRowGroup], const C (&residual)[kRowGroup],
                                         C (&values)[kRowGroup]) {
  const std::uint32_t keep = kept_bits(tail.dropout, row, first / kRowGroup);
#pragma unroll
  for (int i = 0; i < kRowGroup; ++i) {
    const C sum = values[i] + bias[i];
    values[i] = ((keep >> i & 1U) != 0 ? sum * static_cast<C>(tail.dropout.scale) : C(0)) + residual[i];
  }
}

template <class T, bool kTail>
__global__ void __launch_bounds__(kMaxRowThreads, 2)
    norm_rows_kernel(const NormParams p, const TailParams tail) {
  using C = compute_type<T>;
  using RowOfT = Row<T, row_chunks<T>>;
  __shared__ C scratch[kWarp];
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t number =
      block_index() * (static_cast<int>(blockDim.x) / p.lanes) + thread / p.lanes;
  const bool active = number < p.rows;
  const std::int64_t row = active ? number : 0;  // all lanes of a warp must stay for the reductions
  const std::int64_t begin = row * p.cols;
  const RowLayout layout{static_cast<int>(p.cols), p.lanes, thread % p.lanes, kTail || p.vectors,
                         p.vectors};
  RowOfT values;
  values.load(layout, static_cast<const T*>(p.input) + begin, C(0));
  if constexpr (kTail) {
#pragma unroll
    for (int chunk = 0; chunk < row_chunks<T>; ++chunk) {
      if (layout.column(chunk, 0) >= layout.cols) break;
      C bias[kRowGroup] = {};
      C residual[kRowGroup];
      if (tail.bias) RowOfT::load_chunk(layout, static_cast<const T*>(tail.bias), chunk, bias);
      RowOfT::load_chunk(layout, static_cast<const T*>(tail.residual) + begin, chunk, residual);
      add_tail<T>(tail, row, layout.column(chunk, 0), bias, residual, values.values[chunk]);
    }
  }
  C sum = C(0);
  values.for_each(layout, [&](C& x) { sum += x; });
  const C mean = group_reduce(sum, p.lanes, scratch, Sum{}) / static_cast<C>(p.cols);
  C squares = C(0);
  values.for_each(layout, [&](C& x) {
    x -= mean;
    squares += x * x;
  });
  const C variance = group_reduce(squares, p.lanes, scratch, Sum{}) / static_cast<C>(p.cols);
  const C scale = C(1) / sqrt_of(variance + static_cast<C>(p.eps));
  if (!active) return;
#pragma unroll
  for (int chunk = 0; chunk < row_chunks<T>; ++chunk) {
    C weight[kRowGroup];
    C norm_bias[kRowGroup] = {};
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) weight[i] = C(1);
    if (p.weight) RowOfT::load_chunk(layout, static_cast<const T*>(p.weight), chunk, weight);
    if (p.norm_bias) {
      RowOfT::load_chunk(layout, static_cast<const T*>(p.norm_bias), chunk, norm_bias);
    }
    C results[kRowGroup];
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      results[i] = values.values[chunk][i] * scale * weight[i] + norm_bias[i];
    }
    RowOfT::store_chunk(layout, static_cast<T*>(p.output) + begin, chunk, results);
  }
}

/// The value that is normalized, for rows that are read again in each pass.
template <class T, bool kTail>
__device__ __forceinline__ compute_type<T> value_at(const NormParams& p, const TailParams& tail,
                                                    std::int64_t row, std::int64_t column) {
  using C = compute_type<T>;
  C value = widen(static_cast<const T*>(p.input)[row * p.cols + column]);
  if constexpr (kTail) {
    if (tail.bias) value += widen(static_cast<const T*>(tail.bias)[column]);
    const bool keep = (kept_bits(tail.dropout, row, column / kRowGroup) >> column % kRowGroup & 1U) != 0;
    value = keep ? value * static_cast<C>(tail.dropout.scale) : C(0);
    value += widen(static_cast<const T*>(tail.residual)[row * p.cols + column]);
  }
  return value;
}

/// A block a row, of any length.
template <class T, bool kTail>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_long_rows_kernel(const NormParams p, const TailParams tail) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const std::int64_t row = block_index();
  if (row >= p.rows) return;
  const int threads = static_cast<int>(blockDim.x);
  C sum = C(0);
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < p.cols; i += threads) {
    sum += value_at<T, kTail>(p, tail, row, i);
  }
  const C mean = group_reduce(sum, threads, scratch, Sum{}) / static_cast<C>(p.cols);
  C squares = C(0);
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < p.cols; i += threads) {
    const C deviation = value_at<T, kTail>(p, tail, row, i) - mean;
    squares += deviation * deviation;
  }
  const C variance = group_reduce(squares, threads, scratch, Sum{}) / static_cast<C>(p.cols);
  const C scale = C(1) / sqrt_of(variance + static_cast<C>(p.eps));
  T* output = static_cast<T*>(p.output) + row * p.cols;
  for (std::int64_t i = threadIdx.x; i < p.cols; i += threads) {
    C result = (value_at<T, kTail>(p, tail, row, i) - mean) * scale;
    if (p.weight) result *= widen(static_cast<const T*>(p.weight)[i]);
    if (p.norm_bias) result += widen(static_cast<const T*>(p.norm_bias)[i]);
    output[i] = convert<T>(result);
  }
}

const void* data_of(const KernelArgs& args, std::size_t i) {
  return i < args.inputs.size() && args.inputs[i].present ? args.inputs[i].data : nullptr;
}

template <bool kTail>
void run(const KernelArgs& args, NormParams p, const TailParams& tail) {
  if (p.rows == 0 || p.cols == 0) return;
  const char* name = args.op->name.c_str();
  p.vectors = p.cols % kRowGroup == 0;
  for (const void* data : {p.input, p.weight, p.norm_bias, tail.bias, tail.residual,
                           static_cast<const void*>(p.output)}) {
    p.vectors = p.vectors && is_aligned(data, kVectorBytes);
  }
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    const RowPlan plan = plan_rows(p.rows, p.cols, row_chunks<T>);
    p.lanes = plan.lanes;
    launch(stream_of(args), name,
           plan.fits ? norm_rows_kernel<T, kTail> : norm_long_rows_kernel<T, kTail>, plan.blocks,
           plan.threads, 0, p, tail);
  });
}

void run_layer_norm(const KernelArgs& args) {
  const auto& attrs = args.attributes<LayerNormAttrs>();
  const TensorView& input = args.inputs[0];
  NormParams p{input.data, data_of(args, 1), data_of(args, 2), args.outputs[0].data};
  p.eps = attrs.eps;
  p.cols = 1;
  for (std::int64_t i = 1; i <= attrs.axes; ++i) p.cols *= input.size(static_cast<int>(-i));
  p.rows = p.cols == 0 ? 0 : input.numel() / p.cols;
  run<false>(args, p, {});
}

void run_bias_dropout_residual_layer_norm(const KernelArgs& args) {
  const auto& attrs = args.attributes<BiasDropoutResidualLayerNormAttrs>();
  const TensorView& input = args.inputs[0];
  NormParams p{input.data, data_of(args, 3), data_of(args, 4), args.outputs[0].data};
  p.eps = attrs.eps;
  p.cols = input.size(-1);
  p.rows = p.cols == 0 ? 0 : input.numel() / p.cols;
  const TailParams tail{data_of(args, 1), data_of(args, 2),
                        dropout_params(attrs.p, attrs.mode, attrs.site, args)};
  run<true>(args, p, tail);
}

}  // namespace

void register_layer_norm_kernels() {
  register_kernel("layer_norm", DeviceType::cuda,
                  {.name = "cuda.layer_norm", .run = run_layer_norm});
  register_kernel("bias_dropout_residual_layer_norm", DeviceType::cuda,
                  {.name = "cuda.bias_dropout_residual_layer_norm",
                   .run = run_bias_dropout_residual_layer_norm});
}

}  // namespace tenon::cuda
