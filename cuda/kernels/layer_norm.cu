// layer_norm, rms_norm, and bias_dropout_residual_layer_norm = layer_norm(dropout(input + bias) +
// residual).
// Rows are contiguous. An aligned row is read once and held in registers; its mean, and then the mean
// of its squared deviations, are computed in float32 (float64 for float64) from there. Rows that are
// unaligned, or too long for the registers of a block, are read again in each pass.
#include "cuda/device/norm.cuh"
#include "cuda/device/norm_tail.cuh"
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
  bool centers = true;
};

template <class T, int kChunks, bool kTail>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_held_rows_kernel(const NormParams p, const TailParams tail) {
  using C = compute_type<T>;
  using HeldRow = Row<T, kChunks>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const int cols = static_cast<int>(p.cols);
  HeldRow row;
  if constexpr (kTail) {
    HeldRow::prefetch(group, cols, static_cast<const T*>(tail.residual) + group.row * p.cols);
  }
  row.load(group, cols, static_cast<const T*>(p.input) + group.row * p.cols);
  if constexpr (kTail) add_tail(tail, group, cols, row);
  normalize(row, group, cols, p.eps, p.centers, scratch);
  if (!group.active) return;
  HeldRow::for_each_chunk(group, cols, [&](int chunk, int first) {
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

template <class T, bool kTail>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_rows_kernel(const NormParams p, const TailParams tail) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const auto input_at = [&](std::int64_t i) {
    return value_at<kTail>(static_cast<const T*>(p.input), tail, group.row, i, p.cols);
  };
  C mean = C(0);
  if (p.centers) {
    C sum = C(0);
    for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) sum += input_at(i);
    mean = group_reduce(sum, p.lanes, scratch, Sum{}) / static_cast<C>(p.cols);
  }
  C squares = C(0);
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    const C deviation = input_at(i) - mean;
    squares += deviation * deviation;
  }
  const C variance = group_reduce(squares, p.lanes, scratch, Sum{}) / static_cast<C>(p.cols);
  const C scale = C(1) / sqrt_of(variance + static_cast<C>(p.eps));
  if (!group.active) return;
  T* output = static_cast<T*>(p.output) + group.row * p.cols;
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    C result = (input_at(i) - mean) * scale;
    if (p.weight) result *= widen(static_cast<const T*>(p.weight)[i]);
    if (p.norm_bias) result += widen(static_cast<const T*>(p.norm_bias)[i]);
    output[i] = convert<T>(result);
  }
}

/// The kernel for a plan: rows are held by as few registers as their chunks need.
template <class T, bool kTail>
auto kernel_of(const RowPlan& plan, bool held, std::int64_t cols) {
  if (!held) return norm_rows_kernel<T, kTail>;
  const std::int64_t chunks = ceil_div(cols, std::int64_t{plan.lanes} * kRowGroup);
  if constexpr (row_chunks<T> == 4) {
    if (chunks == 4) return norm_held_rows_kernel<T, 4, kTail>;
    if (chunks == 3) return norm_held_rows_kernel<T, 3, kTail>;
  }
  return norm_held_rows_kernel<T, 2, kTail>;
}

const void* data_of(const KernelArgs& args, std::size_t i) {
  return i < args.inputs.size() && args.inputs[i].present ? args.inputs[i].data : nullptr;
}

template <bool kTail>
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
    launch(stream_of(args), name, kernel_of<T, kTail>(plan, plan.fits && aligned, p.cols),
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
  p.centers = kCenters;
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
                  {.name = "cuda.layer_norm", .run = run_norm<true>});
  register_kernel("rms_norm", DeviceType::cuda, {.name = "cuda.rms_norm", .run = run_norm<false>});
  register_kernel("bias_dropout_residual_layer_norm", DeviceType::cuda,
                  {.name = "cuda.bias_dropout_residual_layer_norm",
                   .run = run_bias_dropout_residual_layer_norm});
}

}  // namespace tenon::cuda
