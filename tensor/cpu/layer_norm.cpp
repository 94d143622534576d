// Layer normalization (Ba, Kiros, Hinton, 2016) by two passes over a row in scratch: mean, then the
// variance of the differences, which cancels nothing.
#include "tensor/cpu/layer_norm.h"

#include "tensor/cpu/dropout.h"
#include "tensor/cpu/norm_rows.h"
#include "tensor/ops/attributes.h"

namespace tenon::cpu {
namespace {

/// x = (x - mean)/√(var + eps)·weight + bias; with `centers` false, x/√(mean(x²) + eps)·weight.
template <class C>
void normalize_row(C* x, std::int64_t n, double eps, bool centers, const C* weight, const C* bias) {
  const C factor = center_and_scale(x, n, eps, centers);
  if (weight != nullptr && bias != nullptr) {
    for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] * factor * weight[i] + bias[i];
  } else if (weight != nullptr) {
    for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] * factor * weight[i];
  } else {
    for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] * factor + (bias != nullptr ? bias[i] : C{0});
  }
}

void run_norm(const KernelArgs& args, bool centers) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const auto& attrs = args.attributes<LayerNormAttrs>();
  const NormRows input_rows(args.inputs[0], static_cast<int>(attrs.axes));
  const NormRows output_rows(output, static_cast<int>(attrs.axes));
  const std::int64_t n = output_rows.length();
  const TensorView absent;
  dispatch_float(output.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    parallel_ranges(
        output_rows.count(), rows_per_task(n), [&](std::int64_t begin, std::int64_t end) {
          thread_local Scratch row_scratch, weight_scratch, bias_scratch;
          C* x = row_scratch.get<C>(n);
          const C* weight = converted<T>(args.inputs[1], n, weight_scratch);
          const C* bias = converted<T>(centers ? args.inputs[2] : absent, n, bias_scratch);
          for (std::int64_t row = begin; row < end; ++row) {
            input_rows.load<T>(args.inputs[0], row, x);
            normalize_row(x, n, attrs.eps, centers, weight, bias);
            output_rows.store<T>(x, row, output);
          }
        });
  });
}

template <class T>
void run_fused(const KernelArgs& args, const NormRows& input, const NormRows& residual,
               const NormRows& output) {
  using C = compute_type<T>;
  const auto& attrs = args.attributes<BiasDropoutResidualLayerNormAttrs>();
  const std::int64_t n = output.segment;
  const std::int64_t rows = output.sizes.product();
  const DropoutPlan plan = plan_dropout("bias_dropout_residual_layer_norm",
                                        {attrs.p, attrs.mode, attrs.site}, args, rows, n);
  parallel_ranges(rows, rows_per_task(n), [&](std::int64_t begin, std::int64_t end) {
    thread_local Scratch scratch[5];
    C* x = scratch[0].get<C>(n);
    C* other = scratch[1].get<C>(n);
    const C* bias = converted<T>(args.inputs[1], n, scratch[2]);
    const C* weight = converted<T>(args.inputs[3], n, scratch[3]);
    const C* norm_bias = converted<T>(args.inputs[4], n, scratch[4]);
    for (std::int64_t row = begin; row < end; ++row) {
      load_row(args.inputs[0].as<const T>() + offset_of(row, input.sizes, input.strides),
               input.segment_stride, n, x);
      load_row(args.inputs[2].as<const T>() + offset_of(row, residual.sizes, residual.strides),
               residual.segment_stride, n, other);
      // Separate passes round as the composition does, so both give the same bits in float32.
      add_row(x, bias, n);
      if (plan.active) dropout_row(x, n, plan, static_cast<C>(plan.scale), row, 0);
      add_row(x, other, n);
      normalize_row(x, n, attrs.eps, /*centers=*/true, weight, norm_bias);
      store_row(x, n, args.outputs[0].as<T>() + offset_of(row, output.sizes, output.strides),
                output.segment_stride);
    }
  });
}

}  // namespace

void layer_norm(const KernelArgs& args) { run_norm(args, /*centers=*/true); }
void rms_norm(const KernelArgs& args) { run_norm(args, /*centers=*/false); }

void bias_dropout_residual_layer_norm(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const NormRows input_rows(args.inputs[0], 1);
  const NormRows residual_rows(args.inputs[2], 1);
  const NormRows output_rows(output, 1);
  dispatch_float(output.dtype,
                 [&]<typename T>() { run_fused<T>(args, input_rows, residual_rows, output_rows); });
}

}  // namespace tenon::cpu
