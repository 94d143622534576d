// Softmax: rows along the axis are gathered into scratch in float (double for float64), so that
// every axis and layout runs through the same vector code.
#include "tensor/cpu/softmax.h"

#include <algorithm>

#include "tensor/cpu/rows.h"
#include "tensor/cpu/vector.h"
#include "tensor/ops/attributes.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

/// x[0 .. n) = its softmax; x has room for padded<C>(n).
template <class C>
void softmax_row(C* x, std::int64_t n) {
  pad_row(x, n);
  const C max = row_max(x, n);
  const double sum = exp_row(x, n, max);
  scale_row(x, n, static_cast<C>(1 / sum));
}

/// The axis that softmax runs along, and all others as rows.
struct RowsAlongAxis {
  Extents sizes, input_strides, output_strides;
  std::int64_t n = 1, input_stride = 1, output_stride = 1;

  RowsAlongAxis(const TensorView& input, const TensorView& output, int axis)
      : sizes(output.sizes), input_strides(input.strides), output_strides(output.strides) {
    if (output.rank() == 0) return;
    n = sizes[axis];
    input_stride = input_strides[axis];
    output_stride = output_strides[axis];
    sizes.erase(axis);
    input_strides.erase(axis);
    output_strides.erase(axis);
  }
};

/// Neighbouring rows are handled together: across the axis they share cache lines.
constexpr std::int64_t kRowsTogether = 16;

/// values (count, width) = `count` rows of n elements, `stride` apart.
template <class T>
void gather_rows(const T* const* sources, std::int64_t count, std::int64_t n, std::int64_t stride,
                 compute_type<T>* values, std::int64_t width) {
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) load_row(sources[i], 1, n, values + i * width);
    return;
  }
  for (std::int64_t k = 0; k < n; ++k) {
    for (std::int64_t i = 0; i < count; ++i) {
      values[i * width + k] = static_cast<compute_type<T>>(sources[i][k * stride]);
    }
  }
}

/// The inverse of gather_rows, rounding to T.
template <class T>
void scatter_rows(const compute_type<T>* values, std::int64_t width, std::int64_t count,
                  std::int64_t n, T* const* targets, std::int64_t stride) {
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) store_row(values + i * width, n, targets[i], 1);
    return;
  }
  for (std::int64_t k = 0; k < n; ++k) {
    for (std::int64_t i = 0; i < count; ++i) {
      targets[i][k * stride] = static_cast<T>(values[i * width + k]);
    }
  }
}

}  // namespace

void softmax(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const auto dim = static_cast<int>(args.attributes<AxisAttrs>().dim);
  const RowsAlongAxis r(input, output, dim < 0 ? dim + output.rank() : dim);
  const std::int64_t together = r.input_stride == 1 && r.output_stride == 1 ? 1 : kRowsTogether;
  const std::int64_t grain = std::max(rows_per_task(r.n) / together, std::int64_t{1}) * together;
  dispatch_float(output.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    // Not a power of two, so that neighbouring rows do not share cache sets.
    const std::int64_t width = padded<C>(r.n) + 2 * kLanes<C>;
    parallel_ranges(r.sizes.product(), grain, [&](std::int64_t begin, std::int64_t end) {
      thread_local Scratch scratch;
      C* values = scratch.get<C>(together * width);
      for (std::int64_t first = begin; first < end; first += together) {
        const std::int64_t count = std::min(together, end - first);
        const T* sources[kRowsTogether];
        T* targets[kRowsTogether];
        for (std::int64_t i = 0; i < count; ++i) {
          sources[i] = input.as<const T>() + offset_of(first + i, r.sizes, r.input_strides);
          targets[i] = output.as<T>() + offset_of(first + i, r.sizes, r.output_strides);
        }
        gather_rows(sources, count, r.n, r.input_stride, values, width);
        for (std::int64_t i = 0; i < count; ++i) softmax_row(values + i * width, r.n);
        scatter_rows(values, width, count, r.n, targets, r.output_stride);
      }
    });
  });
}

}  // namespace tenon::cpu
