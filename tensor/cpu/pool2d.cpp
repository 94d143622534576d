// Pooling plane by plane: one thread computes a plane, so sums over overlapping windows have one order.
#include "tensor/cpu/pool2d.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/cpu/rows.h"
#include "tensor/detail/window.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

using ops::PoolGeometry;
using ops::WindowAxis;

/// The part of the axis that output position o sees.
struct Span {
  std::int64_t first;
  std::int64_t last;
  Span(const WindowAxis& axis, std::int64_t o)
      : first(std::max<std::int64_t>(o * axis.stride - axis.padding, 0)),
        last(std::min(o * axis.stride - axis.padding + axis.kernel, axis.input)) {}
};

/// Calls f(output index, rows, columns) for each window of a plane.
template <class F>
void for_each_window(const PoolGeometry& g, F f) {
  for (std::int64_t y = 0; y < g.h.output; ++y) {
    for (std::int64_t x = 0; x < g.w.output; ++x) {
      f(y * g.w.output + x, Span(g.h, y), Span(g.w, x));
    }
  }
}

void for_each_plane(const PoolGeometry& g, const std::function<void(std::int64_t)>& f) {
  const std::int64_t grain = rows_per_task(std::max(g.input_plane(), g.output_plane()));
  parallel_ranges(g.planes, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t plane = begin; plane < end; ++plane) f(plane);
  });
}

/// Adds gradients of windows into planes in the compute type, then stores them.
template <class T, class F>
void scatter_planes(const PoolGeometry& g, T* target, F add_windows) {
  using C = compute_type<T>;
  for_each_plane(g, [&](std::int64_t plane) {
    thread_local Scratch scratch;
    C* sums = scratch.get<C>(g.input_plane());
    std::fill_n(sums, g.input_plane(), C{0});
    add_windows(plane, sums);
    store_row(sums, g.input_plane(), target + plane * g.input_plane(), 1);
  });
}

}  // namespace

void max_pool2d(const KernelArgs& args) {
  if (args.outputs[0].numel() == 0) return;
  const PoolGeometry g(args.attributes<Pool2dAttrs>(), args.inputs[0], args.outputs[0]);
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    using C = compute_type<T>;
    for_each_plane(g, [&](std::int64_t plane) {
      const T* input = args.inputs[0].as<const T>() + plane * g.input_plane();
      T* values = args.outputs[0].as<T>() + plane * g.output_plane();
      auto* indices = args.outputs[1].as<std::int64_t>() + plane * g.output_plane();
      for_each_window(g, [&](std::int64_t output, const Span& rows, const Span& cols) {
        std::int64_t best = rows.first * g.w.input + cols.first;
        C largest = -std::numeric_limits<C>::infinity();
        for (std::int64_t y = rows.first; y < rows.last; ++y) {
          for (std::int64_t x = cols.first; x < cols.last; ++x) {
            const auto value = static_cast<C>(input[y * g.w.input + x]);
            if (value > largest || std::isnan(value)) {
              largest = value;
              best = y * g.w.input + x;
            }
          }
        }
        values[output] = static_cast<T>(largest);
        indices[output] = best;
      });
    });
  });
}

void max_pool2d_backward(const KernelArgs& args) {
  if (args.outputs[0].numel() == 0) return;
  const PoolGeometry g(args.attributes<Pool2dBackwardAttrs>(), args.outputs[0], args.inputs[0]);
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    using C = compute_type<T>;
    scatter_planes(g, args.outputs[0].as<T>(), [&](std::int64_t plane, C* sums) {
      const T* grad = args.inputs[0].as<const T>() + plane * g.output_plane();
      const auto* indices = args.inputs[1].as<const std::int64_t>() + plane * g.output_plane();
      for (std::int64_t i = 0; i < g.output_plane(); ++i)
        sums[indices[i]] += static_cast<C>(grad[i]);
    });
  });
}

void avg_pool2d(const KernelArgs& args) {
  if (args.outputs[0].numel() == 0) return;
  const PoolGeometry g(args.attributes<Pool2dAttrs>(), args.inputs[0], args.outputs[0]);
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const auto count = static_cast<C>(g.h.kernel * g.w.kernel);
    for_each_plane(g, [&](std::int64_t plane) {
      const T* input = args.inputs[0].as<const T>() + plane * g.input_plane();
      T* values = args.outputs[0].as<T>() + plane * g.output_plane();
      for_each_window(g, [&](std::int64_t output, const Span& rows, const Span& cols) {
        C total = 0;
        for (std::int64_t y = rows.first; y < rows.last; ++y) {
          for (std::int64_t x = cols.first; x < cols.last; ++x)
            total += static_cast<C>(input[y * g.w.input + x]);
        }
        values[output] = static_cast<T>(total / count);
      });
    });
  });
}

void avg_pool2d_backward(const KernelArgs& args) {
  if (args.outputs[0].numel() == 0) return;
  const PoolGeometry g(args.attributes<Pool2dBackwardAttrs>(), args.outputs[0], args.inputs[0]);
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const auto count = static_cast<C>(g.h.kernel * g.w.kernel);
    scatter_planes(g, args.outputs[0].as<T>(), [&](std::int64_t plane, C* sums) {
      const T* grad = args.inputs[0].as<const T>() + plane * g.output_plane();
      for_each_window(g, [&](std::int64_t output, const Span& rows, const Span& cols) {
        const C share = static_cast<C>(grad[output]) / count;
        for (std::int64_t y = rows.first; y < rows.last; ++y) {
          for (std::int64_t x = cols.first; x < cols.last; ++x) sums[y * g.w.input + x] += share;
        }
      });
    });
  });
}

}  // namespace tenon::cpu
