// layer_norm, rms_norm, and bias_dropout_residual_layer_norm = layer_norm(dropout(input + bias) +
// residual).
// Rows are contiguous. An aligned row is read once and held in registers; its mean, and then the mean
// of its squared deviations, are computed in float32 (float64 for float64) from there. Rows that are
// unaligned, or too long for the registers of a block, are read again in each pass.
#include "cuda/device/norm.cuh"
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
};

/// What the fused op does to the input before it is normalized.
struct TailParams {
  const void* bias = nullptr;  // (cols)
  const void* residual = nullptr;
  DropoutParams dropout;
};

/// dropout(x + bias) + residual, in place, for the columns of a row that this thread holds.
template <class T>
__device__ __forceinline__ void add_tail(const TailParams& tail, const RowGroup& group, int cols,
                                         Row<T>& row) {
  using C = compute_type<T>;
  const T* residuals = static_cast<const T*>(tail.residual) + group.row * cols;
  const C scale = static_cast<C>(tail.dropout.scale);
  Row<T>::for_each_chunk(group, cols, [&](int chunk, int first) {
    C bias[kRowGroup];
    C residual[kRowGroup];
    load_widened(static_cast<const T*>(tail.bias) + first, bias);
    load_widened(residuals + first, residual);
    const std::uint32_t keep = kept_bits(tail.dropout, group.row, first / kRowGroup);
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      C& x = row.values[chunk][i];
      x = ((keep >> i & 1U) != 0 ? (x + bias[i]) * scale : C(0)) + residual[i];
    }
  });
}

template <class T, bool kCenters, bool kTail>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_held_rows_kernel(const NormParams p, const TailParams tail) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const int cols = static_cast<int>(p.cols);
  Row<T> row;
  row.load(group, cols, static_cast<const T*>(p.input) + group.row * p.cols);
  if constexpr (kTail) add_tail(tail, group, cols, row);
  normalize<kCenters>(row, group, cols, p.eps, scratch);
  if (!group.active) return;
  Row<T>::for_each_chunk(group, cols, [&](int chunk, int first) {
    C(&x)[kRowGroup] = row.values[chunk];
    C vector[kRowGroup];
    if (p.weight) {
      load_widened(static_cast<const T*>(p.weight) + first, vector);
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) x[i] *= vector[i];
    }
    if (p.norm_bias) {
      load_widened(static_cast<const T*>(p.norm_bias) + first, vector);
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) x[i] += vector[i];
    }
  });
  row.store(group, cols, static_cast<T*>(p.output) + group.row * p.cols);
}

/// The value that is normalized, for rows that are read again in each pass.
template <class T, bool kTail>
__device__ __forceinline__ compute_type<T> value_at(const NormParams& p, const TailParams& tail,
                                                    std::int64_t row, std::int64_t column) {
  using C = compute_type<T>;
  C value = widen(static_cast<const T*>(p.input)[row * p.cols + column]);
  if constexpr (kTail) {
    const std::uint32_t keep = kept_bits(tail.dropout, row, column / kRowGroup);
    value += widen(static_cast<const T*>(tail.bias)[column]);
    value =
        (keep >> column % kRowGroup & 1U) != 0 ? value * static_cast<C>(tail.dropout.scale) : C(0);
    value += widen(static_cast<const T*>(tail.residual)[row * p.cols + column]);
  }
  return value;
}

template <class T, bool kCenters, bool kTail>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_rows_kernel(const NormParams p, const TailParams tail) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  C mean = C(0);
  if constexpr (kCenters) {
    C sum = C(0);
    for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
      sum += value_at<T, kTail>(p, tail, group.row, i);
    }
    mean = group_reduce(sum, p.lanes, scratch, Sum{}) / static_cast<C>(p.cols);
  }
  C squares = C(0);
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    const C deviation = value_at<T, kTail>(p, tail, group.row, i) - mean;
    squares += deviation * deviation;
  }
  const C variance = group_reduce(squares, p.lanes, scratch, Sum{}) / static_cast<C>(p.cols);
  const C scale = C(1) / sqrt_of(variance + static_cast<C>(p.eps));
  if (!group.active) return;
  T* output = static_cast<T*>(p.output) + group.row * p.cols;
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    C result = (value_at<T, kTail>(p, tail, group.row, i) - mean) * scale;
    if (p.weight) result *= widen(static_cast<const T*>(p.weight)[i]);
    if (p.norm_bias) result += widen(static_cast<const T*>(p.norm_bias)[i]);
    output[i] = convert<T>(result);
  }
}

const void* data_of(const KernelArgs& args, std::size_t i) {
  return i < args.inputs.size() && args.inputs[i].present ? args.inputs[i].data : nullptr;
}

template <bool kCenters, bool kTail>
void run(const KernelArgs& args, NormParams p, const TailParams& tail) {
  if (p.rows == 0 || p.cols == 0) return;
  const char* name = args.op->name.c_str();
  bool aligned = p.cols % kRowGroup == 0;
  for (const void* data : {p.input, p.weight, p.norm_bias, tail.bias, tail.residual,
                           static_cast<const void*>(p.output)}) {
    aligned = aligned && is_aligned(data, kVectorBytes);
  }
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    const RowPlan plan = plan_rows(p.rows, p.cols, row_chunks<T>);
    p.lanes = plan.lanes;
    launch(stream_of(args), name,
           plan.fits && aligned ? norm_held_rows_kernel<T, kCenters, kTail>
                                : norm_rows_kernel<T, kCenters, kTail>,
           plan.blocks, plan.threads, 0, p, tail);
  });
}

template <bool kCenters>
void run_norm(const KernelArgs& args) {
  const auto& attrs = args.attributes<LayerNormAttrs>();
  const TensorView& input = args.inputs[0];
  NormParams p{input.data, data_of(args, 1), kCenters ? data_of(args, 2) : nullptr,
               args.outputs[0].data};
  p.eps = attrs.eps;
  p.cols = 1;
  for (std::int64_t i = 1; i <= attrs.axes; ++i) p.cols *= input.size(static_cast<int>(-i));
  p.rows = p.cols == 0 ? 0 : input.numel() / p.cols;
  run<kCenters, false>(args, p, {});
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
  run<true, true>(args, p, tail);
}

}  // namespace

void register_layer_norm_kernels() {
  register_kernel("layer_norm", DeviceType::cuda,
                  {.name = "cuda.layer_norm", .run = run_norm<true>});
  register_kernel("rms_norm", DeviceType::cuda, {.name = "cuda.rms_norm", .run = run_norm<false>});
  register_kernel("bias_dropout_residual_layer_norm", DeviceType::cuda,
                  {.name = "cuda.bias_dropout_residual_layer_norm",
                   .run = run_bias_dropout_residual_layer_norm});
}

}  // namespace tenon::cuda
