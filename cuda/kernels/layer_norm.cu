// layer_norm, rms_norm, and bias_dropout_residual_layer_norm = layer_norm(dropout(input + bias) +
// residual).
// Rows are contiguous. Aligned rows stream through shared memory into registers (device/row_stream.cuh); a
// row's mean, and then the mean of its squared deviations, are computed in float32 (float64 for float64)
// from there. Rows that are unaligned, or too long for a block, are read again in each pass.
#include "cuda/device/norm.cuh"
#include "cuda/device/norm_tail.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/plain_attributes.h"

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
  int lanes = 1;  // of rows that are not held
  bool centers = true;
  DType dtype = DType::float32;
};

/// A thread holds the row; what is copied are the input and, of the fused op, the residual.
enum Operand { kInput, kResidual };
template <class T, bool kTail>
inline constexpr RowStreamNeeds needs = norm_needs(sizeof(T), kTail);

template <class T, int kChunks, bool kTail>
__global__ void __launch_bounds__(largest_stream_block(needs<T, kTail>, kChunks),
                                  resident_stream_blocks(needs<T, kTail>, kChunks))
    norm_held_rows_kernel(const NormParams p, const TailParams tail, const RowStream stream) {
  using C = compute_type<T>;
  using HeldRow = Row<T, kChunks>;
  using Ring = RowRing<T, kChunks>;
  __shared__ C scratch[kWarp];
  const int cols = static_cast<int>(p.cols);
  const auto start = [&](const RowGroup& group, int slot) {
    const std::int64_t at = group.row * p.cols;
    Ring::copy(group, cols, static_cast<const T*>(p.input) + at, slot + kInput);
    if constexpr (kTail) {
      Ring::copy(group, cols, static_cast<const T*>(tail.residual) + at, slot + kResidual);
    }
  };
  stream_rows(stream, start, [&](const RowGroup& group, int slot) {
    HeldRow row;
    Ring::read(group, cols, slot + kInput, row);
    if constexpr (kTail) add_tail(tail, group, cols, slot + kResidual, row);
    normalize(row, group, cols, p.eps, p.centers, scratch);
    if (!group.active) return;
    T* output = static_cast<T*>(p.output) + group.row * p.cols;
    HeldRow::for_each_chunk(group, cols, [&](int chunk, int first) {
      C(&x)[kRowGroup] = row.values[chunk];
      C weight[kRowGroup];
      C bias[kRowGroup];
      load_vector(static_cast<const T*>(p.weight), first, C(1), weight);
      load_vector(static_cast<const T*>(p.norm_bias), first, C(0), bias);
#pragma unroll
      for (int i = 0; i < kRowGroup; ++i) x[i] = x[i] * weight[i] + bias[i];
      store_narrowed(output + first, x);
    });
  });
}

/// For rows that are read again in each pass; with a tail, rows of p.dtype, which is computed in T.
template <class T, bool kTail>
__global__ void __launch_bounds__(kMaxRowThreads)
    norm_rows_kernel(const NormParams p, const TailParams tail) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const auto load = [&](const void* data, std::int64_t at) {
    if constexpr (kTail) return load_as<C>(p.dtype, data, at);
    return widen(static_cast<const T*>(data)[at]);
  };
  const auto input_at = [&](std::int64_t i) {
    if constexpr (kTail) return value_at<C>(p.dtype, p.input, tail, group.row, i, p.cols);
    return load(p.input, group.row * p.cols + i);
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
  const std::int64_t start = group.row * p.cols;
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
    C result = (input_at(i) - mean) * scale;
    if (p.weight) result *= load(p.weight, i);
    if (p.norm_bias) result += load(p.norm_bias, i);
    if constexpr (kTail) {
      store_as(p.dtype, p.output, start + i, result);
    } else {
      static_cast<T*>(p.output)[start + i] = convert<T>(result);
    }
  }
}

const void* data_of(const KernelArgs& args, std::size_t i) {
  return i < args.inputs.size() && args.inputs[i].present ? args.inputs[i].data : nullptr;
}

template <bool kTail>
void run(const KernelArgs& args, NormParams p, const TailParams& tail) {
  if (p.rows == 0 || p.cols == 0) return;
  const char* name = args.name();
  bool aligned = p.cols % kRowGroup == 0;
  for (const void* data : {p.input, p.weight, p.norm_bias, tail.bias, tail.residual,
                           static_cast<const void*>(p.output)}) {
    aligned = aligned && is_aligned(data, kVectorBytes);
  }
  const Stream stream = stream_of(args);
  p.dtype = args.outputs[0].dtype;
  dispatch_float(p.dtype, [&]<typename T>() {
    const RowStreamPlan held =
        plan_row_stream(p.rows, p.cols, needs<T, kTail>, device_limits(stream.device));
    if (held.fits && aligned) {
      const auto kernel = for_chunks<T>(
          held.chunks, []<int kChunks>() { return norm_held_rows_kernel<T, kChunks, kTail>; });
      return launch(stream, name, kernel, held.blocks, held.threads, held.shared_bytes, p, tail,
                    RowStream(p.rows, held));
    }
    const RowPlan plan = plan_rows(p.rows, p.cols, row_chunks<T>);
    p.lanes = plan.lanes;
    using Rows = std::conditional_t<kTail, compute_type<T>, T>;
    launch(stream, name, norm_rows_kernel<Rows, kTail>, plan.blocks, plan.threads, 0, p, tail);
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
