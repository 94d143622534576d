// Layer normalization (Ba, Kiros, Hinton, 2016) by two passes over a row in scratch: mean, then the
// variance of the differences, which cancels nothing.
#include "tensor/cpu/layer_norm.h"

#include <algorithm>
#include <cmath>

#include "tensor/cpu/dropout.h"
#include "tensor/cpu/rows.h"
#include "tensor/ops/attributes.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

/// An optional operand of n elements, converted once per task; null when it is absent.
template <class T>
const compute_type<T>* converted(const TensorView& view, std::int64_t n, Scratch& scratch) {
  if (!view.present) return nullptr;
  auto* values = scratch.get<compute_type<T>>(n);
  load_row(view.as<const T>(), 1, n, values);
  return values;
}

/// x = (x - mean)/√(var + eps)·weight + bias.
template <class C>
void normalize_row(C* x, std::int64_t n, double eps, const C* weight, const C* bias) {
  const auto count = static_cast<double>(n);
  const double variance = center_row(x, n, static_cast<C>(row_sum(x, n) / count)) / count;
  const auto factor = static_cast<C>(1 / std::sqrt(variance + eps));
  if (weight != nullptr && bias != nullptr) {
    for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] * factor * weight[i] + bias[i];
  } else if (weight != nullptr) {
    for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] * factor * weight[i];
  } else {
    for (std::int64_t i = 0; i < n; ++i) x[i] = x[i] * factor + (bias != nullptr ? bias[i] : C{0});
  }
}

/// The last axes of a view as rows of `n` elements, made of segments along the last axis.
struct Rows {
  Extents sizes, strides;              // of the row axes
  Extents inner_sizes, inner_strides;  // of the normalized axes but the last
  std::int64_t segment = 1;
  std::int64_t segment_stride = 1;

  Rows(const TensorView& view, int normalized_axes) {
    const int first = view.rank() - normalized_axes;
    for (int axis = 0; axis < view.rank(); ++axis) {
      const bool last = axis == view.rank() - 1 && normalized_axes > 0;
      if (last) {
        segment = view.sizes[axis];
        segment_stride = view.strides[axis];
      } else {
        (axis < first ? sizes : inner_sizes).push_back(view.sizes[axis]);
        (axis < first ? strides : inner_strides).push_back(view.strides[axis]);
      }
    }
  }

  /// Calls f(offset in the tensor, position in the row) for every segment of a row.
  template <class F>
  void for_each_segment(std::int64_t row, F f) const {
    const std::int64_t start = offset_of(row, sizes, strides);
    const std::int64_t segments = inner_sizes.product();
    for (std::int64_t i = 0; i < segments; ++i) {
      f(start + offset_of(i, inner_sizes, inner_strides), i * segment);
    }
  }
};

template <class T>
void run_layer_norm(const KernelArgs& args, const Rows& input, const Rows& output) {
  using C = compute_type<T>;
  const double eps = args.attributes<LayerNormAttrs>().eps;
  const std::int64_t n = output.inner_sizes.product() * output.segment;
  const std::int64_t rows = output.sizes.product();
  parallel_ranges(rows, rows_per_task(n), [&](std::int64_t begin, std::int64_t end) {
    thread_local Scratch row_scratch, weight_scratch, bias_scratch;
    C* x = row_scratch.get<C>(n);
    const C* weight = converted<T>(args.inputs[1], n, weight_scratch);
    const C* bias = converted<T>(args.inputs[2], n, bias_scratch);
    for (std::int64_t row = begin; row < end; ++row) {
      input.for_each_segment(row, [&](std::int64_t offset, std::int64_t position) {
        load_row(args.inputs[0].as<const T>() + offset, input.segment_stride, input.segment,
                 x + position);
      });
      normalize_row(x, n, eps, weight, bias);
      output.for_each_segment(row, [&](std::int64_t offset, std::int64_t position) {
        store_row(x + position, output.segment, args.outputs[0].as<T>() + offset,
                  output.segment_stride);
      });
    }
  });
}

template <class T>
void run_fused(const KernelArgs& args, const Rows& input, const Rows& residual,
               const Rows& output) {
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
      normalize_row(x, n, attrs.eps, weight, norm_bias);
      store_row(x, n, args.outputs[0].as<T>() + offset_of(row, output.sizes, output.strides),
                output.segment_stride);
    }
  });
}

}  // namespace

void layer_norm(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const auto axes = static_cast<int>(args.attributes<LayerNormAttrs>().axes);
  const Rows input_rows(args.inputs[0], axes);
  const Rows output_rows(output, axes);
  dispatch_float(output.dtype,
                 [&]<typename T>() { run_layer_norm<T>(args, input_rows, output_rows); });
}

void bias_dropout_residual_layer_norm(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const Rows input_rows(args.inputs[0], 1);
  const Rows residual_rows(args.inputs[2], 1);
  const Rows output_rows(output, 1);
  dispatch_float(output.dtype,
                 [&]<typename T>() { run_fused<T>(args, input_rows, residual_rows, output_rows); });
}

}  // namespace tenon::cpu
