// Pooling plane by plane: one thread computes a plane, so sums over overlapping windows have one order.
#include "tensor/cpu/pool2d.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/calls/window.h"
#include "tensor/cpu/rows.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"

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

namespace {

/// One row of max_pool2d, for all windows at once, kernel offset by kernel offset: `largest` and
/// `best`, an index into the plane, of each. Offsets come in the order of a window's elements.
template <class T, class C>
void pool_row(const PoolGeometry& g, const T* input, std::int64_t y, C* largest,
              std::int32_t* best) {
  const auto width = static_cast<std::int32_t>(g.w.input);
  const Span rows(g.h, y);
  for (std::int64_t x = 0; x < g.w.output; ++x) {
    largest[x] = -std::numeric_limits<C>::infinity();
    best[x] = static_cast<std::int32_t>(rows.first) * width +
              static_cast<std::int32_t>(Span(g.w, x).first);
  }
  const auto step = static_cast<std::int32_t>(g.w.stride);
  for (auto row = static_cast<std::int32_t>(rows.first); row < rows.last; ++row) {
    for (std::int64_t j = 0; j < g.w.kernel; ++j) {
      const std::int64_t start = j - g.w.padding;  // the input of window 0
      const std::int64_t first = start >= 0 ? 0 : (-start + g.w.stride - 1) / g.w.stride;
      const std::int64_t last =
          std::min(g.w.output, (g.w.input - start + g.w.stride - 1) / g.w.stride);
      const auto base = row * width + static_cast<std::int32_t>(start);
      for (auto x = static_cast<std::int32_t>(first); x < last; ++x) {
        const std::int32_t index = base + x * step;
        const C value = static_cast<C>(input[index]);
        const bool wins = value > largest[x] || value != value;  // NaN stays
        largest[x] = wins ? value : largest[x];
        best[x] = wins ? index : best[x];
      }
    }
  }
}

}  // namespace

void max_pool2d(const KernelArgs& args) {
  if (args.outputs[0].numel() == 0) return;
  const PoolGeometry g(args.attributes<Pool2dAttrs>(), args.inputs[0], args.outputs[0]);
  TENON_CHECK(g.input_plane() <= std::numeric_limits<std::int32_t>::max(), ValueError,
              "[max_pool2d] planes of {} x {}; needed at most 2^31 - 1 elements", g.h.input,
              g.w.input);
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    using C = compute_type<T>;
    for_each_plane(g, [&](std::int64_t plane) {
      thread_local Scratch largest_memory, best_memory;
      C* largest = largest_memory.get<C>(g.w.output);
      auto* best = best_memory.get<std::int32_t>(g.w.output);
      const T* input = args.inputs[0].as<const T>() + plane * g.input_plane();
      T* values = args.outputs[0].as<T>() + plane * g.output_plane();
      auto* indices = args.outputs[1].as<std::int64_t>() + plane * g.output_plane();
      for (std::int64_t y = 0; y < g.h.output; ++y) {
        pool_row(g, input, y, largest, best);
        store_row(largest, g.w.output, values + y * g.w.output, 1);
        std::copy_n(best, g.w.output, indices + y * g.w.output);
      }
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
