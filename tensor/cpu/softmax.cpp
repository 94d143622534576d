// Softmax, log_softmax and their gradients: rows along the axis are gathered into scratch in float (double for float64), so that
// every axis and layout runs through the same vector code.
#include "tensor/cpu/softmax.h"

#include <algorithm>
#include <cmath>
#include <vector>

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

/// The axis that rows run along, and all other axes, which count them.
struct RowsAlongAxis {
  Extents sizes, strides;
  std::int64_t n = 1, stride = 1;

  RowsAlongAxis(const TensorView& view, int axis) : sizes(view.sizes), strides(view.strides) {
    if (view.rank() == 0) return;
    n = sizes[axis];
    stride = strides[axis];
    sizes.erase(axis);
    strides.erase(axis);
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

/// Calls f(rows, n) for each row of the output: rows[i] is the row of operand i, then come row buffers.
/// What f leaves in rows[0] is the output's row. Buffers have room for padded<C>(n) values.
template <int kInputs, int kBuffers, class F>
void for_each_row(const KernelArgs& args, F f) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const auto dim = static_cast<int>(args.attributes<AxisAttrs>().dim);
  const int axis = dim < 0 ? dim + output.rank() : dim;
  const RowsAlongAxis target(output, axis);
  std::vector<RowsAlongAxis> sources;
  bool dense = target.stride == 1;
  for (int i = 0; i < kInputs; ++i) {
    sources.emplace_back(args.inputs[static_cast<std::size_t>(i)], axis);
    dense = dense && sources.back().stride == 1;
  }
  const std::int64_t n = target.n;
  const std::int64_t together = dense ? 1 : kRowsTogether;
  const std::int64_t grain = std::max(rows_per_task(n) / together, std::int64_t{1}) * together;
  dispatch_float(output.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    // Not a power of two, so that neighbouring rows do not share cache sets.
    const std::int64_t width = padded<C>(n) + 2 * kLanes<C>;
    parallel_ranges(target.sizes.product(), grain, [&](std::int64_t begin, std::int64_t end) {
      thread_local Scratch scratch;
      C* values = scratch.get<C>((kInputs * together + kBuffers) * width);
      for (std::int64_t first = begin; first < end; first += together) {
        const std::int64_t count = std::min(together, end - first);
        for (int input = 0; input < kInputs; ++input) {
          const RowsAlongAxis& r = sources[static_cast<std::size_t>(input)];
          const T* rows[kRowsTogether];
          for (std::int64_t i = 0; i < count; ++i) {
            rows[i] = args.inputs[static_cast<std::size_t>(input)].as<const T>() +
                      offset_of(first + i, r.sizes, r.strides);
          }
          gather_rows(rows, count, n, r.stride, values + input * together * width, width);
        }
        for (std::int64_t i = 0; i < count; ++i) {
          C* rows[kInputs + kBuffers];
          for (int k = 0; k < kInputs; ++k) rows[k] = values + (k * together + i) * width;
          for (int k = 0; k < kBuffers; ++k) {
            rows[kInputs + k] = values + (kInputs * together + k) * width;
          }
          f(rows, n);
        }
        T* targets[kRowsTogether];
        for (std::int64_t i = 0; i < count; ++i) {
          targets[i] = output.as<T>() + offset_of(first + i, target.sizes, target.strides);
        }
        scatter_rows(values, width, count, n, targets, target.stride);
      }
    });
  });
}

}  // namespace

void softmax(const KernelArgs& args) {
  for_each_row<1, 0>(args, [](auto* const* rows, std::int64_t n) { softmax_row(rows[0], n); });
}

void softmax_backward(const KernelArgs& args) {
  for_each_row<2, 0>(args, []<class C>(C* const* rows, std::int64_t n) {
    C* gradient = rows[0];
    const C* output = rows[1];
    const auto shift = static_cast<C>(row_dot(gradient, output, n));
    for (std::int64_t i = 0; i < n; ++i) gradient[i] = (gradient[i] - shift) * output[i];
  });
}

void log_softmax(const KernelArgs& args) {
  for_each_row<1, 1>(args, []<class C>(C* const* rows, std::int64_t n) {
    C* x = rows[0];
    C* terms = rows[1];
    pad_row(x, n);
    const C max = row_max(x, n);
    std::copy_n(x, padded<C>(n), terms);
    const auto log_sum = static_cast<C>(std::log(exp_row(terms, n, max)));
    for (std::int64_t i = 0; i < n; ++i) x[i] = (x[i] - max) - log_sum;
  });
}

void log_softmax_backward(const KernelArgs& args) {
  for_each_row<2, 0>(args, []<class C>(C* const* rows, std::int64_t n) {
    C* gradient = rows[0];
    C* probability = rows[1];
    pad_row(probability, n);
    exp_row(probability, n, C{0});
    const auto total = static_cast<C>(row_sum(gradient, n));
    for (std::int64_t i = 0; i < n; ++i) gradient[i] -= probability[i] * total;
  });
}

}  // namespace tenon::cpu
