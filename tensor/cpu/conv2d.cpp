// Convolution as matrix products over windows, in the compute type. Forward, windows are unfolded as gemm
// packs its operand; for gradients some samples at a time become a matrix `columns` (channels·KH·KW,
// samples·positions). Work is cut by size alone and sums over windows run in one thread each, so the
// number of threads does not matter.
#include "tensor/cpu/conv2d.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "tensor/calls/window.h"
#include "tensor/cpu/gemm.h"
#include "tensor/cpu/rows.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

using ops::ConvGeometry;
using ops::WindowAxis;

/// Elements of `columns` at a time.
constexpr std::int64_t kColumnElements = std::int64_t{1} << 22;

/// `columns` of a run of samples.
struct Chunk {
  std::int64_t first;
  std::int64_t samples;
  std::int64_t row_length;  // samples · positions
};

/// Calls f(chunk) for runs of samples in order.
template <class F>
void for_each_chunk(const ConvGeometry& g, F f) {
  const std::int64_t per_sample = g.groups * g.depth() * g.positions();
  const std::int64_t together =
      std::clamp<std::int64_t>(kColumnElements / std::max<std::int64_t>(per_sample, 1), 1,
                               std::max<std::int64_t>(g.samples, 1));
  for (std::int64_t first = 0; first < g.samples; first += together) {
    const std::int64_t samples = std::min(together, g.samples - first);
    f(Chunk{first, samples, samples * g.positions()});
  }
}

/// Output positions [first, last) whose input for kernel offset k lies inside the axis.
struct Inside {
  std::int64_t first;
  std::int64_t last;
  Inside(const WindowAxis& axis, std::int64_t k) {
    const std::int64_t start = k * axis.dilation - axis.padding;  // the input of output 0
    const auto up = [&](std::int64_t n) {
      return n <= 0 ? 0 : (n + axis.stride - 1) / axis.stride;
    };
    first = std::min(up(-start), axis.output);
    last = std::clamp(up(axis.input - start), first, axis.output);
  }
};

/// Calls f(row of columns, kernel offsets) for the rows of one channel.
template <class F>
void for_each_offset(const ConvGeometry& g, std::int64_t channel, F f) {
  std::int64_t row = channel * g.h.kernel * g.w.kernel;
  for (std::int64_t i = 0; i < g.h.kernel; ++i) {
    for (std::int64_t j = 0; j < g.w.kernel; ++j) f(row++, i, j);
  }
}

/// The element of an input plane that kernel offset (i, j) meets at output (y, x); may lie outside.
std::int64_t input_index(const ConvGeometry& g, std::int64_t y, std::int64_t x, std::int64_t i,
                         std::int64_t j) {
  return (y * g.h.stride - g.h.padding + i * g.h.dilation) * g.w.input + x * g.w.stride -
         g.w.padding + j * g.w.dilation;
}

/// columns[(c, i, j)][(sample, y, x)] = the input that kernel offset (i, j) meets at (y, x), or 0.
template <class T>
void unfold(const ConvGeometry& g, const Chunk& chunk, const T* input, compute_type<T>* columns) {
  using C = compute_type<T>;
  parallel_for(chunk.samples * g.channels, [&](std::int64_t task) {
    const std::int64_t sample = task / g.channels;
    const std::int64_t channel = task % g.channels;
    const T* plane = input + ((chunk.first + sample) * g.channels + channel) * g.input_plane();
    for_each_offset(g, channel, [&](std::int64_t row, std::int64_t i, std::int64_t j) {
      C* target = columns + row * chunk.row_length + sample * g.positions();
      const Inside rows(g.h, i), cols(g.w, j);
      std::fill_n(target, g.positions(), C{0});
      if (cols.first == cols.last) return;
      for (std::int64_t y = rows.first; y < rows.last; ++y) {
        load_row(plane + input_index(g, y, cols.first, i, j), g.w.stride, cols.last - cols.first,
                 target + y * g.w.output + cols.first);
      }
    });
  });
}

/// The adjoint of unfold: each input element becomes the sum over the windows that met it.
template <class T>
void fold(const ConvGeometry& g, const Chunk& chunk, const compute_type<T>* columns, T* input) {
  using C = compute_type<T>;
  parallel_for(chunk.samples * g.channels, [&](std::int64_t task) {
    thread_local Scratch scratch;
    C* plane = scratch.get<C>(g.input_plane());
    std::fill_n(plane, g.input_plane(), C{0});
    const std::int64_t sample = task / g.channels;
    const std::int64_t channel = task % g.channels;
    for_each_offset(g, channel, [&](std::int64_t row, std::int64_t i, std::int64_t j) {
      const C* source = columns + row * chunk.row_length + sample * g.positions();
      const Inside rows(g.h, i), cols(g.w, j);
      for (std::int64_t y = rows.first; y < rows.last; ++y) {
        const std::int64_t first = input_index(g, y, 0, i, j);
        for (std::int64_t x = cols.first; x < cols.last; ++x)
          plane[first + x * g.w.stride] += source[y * g.w.output + x];
      }
    });
    store_row(plane, g.input_plane(),
              input + ((chunk.first + sample) * g.channels + channel) * g.input_plane(), 1);
  });
}

/// A contiguous operand in the compute type: itself, or a converted copy in `scratch`.
template <class T>
const compute_type<T>* widened(const TensorView& view, Scratch& scratch) {
  if constexpr (std::is_same_v<T, compute_type<T>>) {
    return view.as<const T>();
  } else {
    auto* values = scratch.get<compute_type<T>>(view.numel());
    load_row(view.as<const T>(), 1, view.numel(), values);
    return values;
  }
}

/// One product for each group; rows of A and C are (samples, positions).
MatrixProduct grouped_problem(const ConvGeometry& g, const Chunk& chunk) {
  MatrixProduct p;
  p.batch = {g.groups};
  p.rows = {chunk.samples, g.positions()};
  return p;
}

/// Every window is one element, and neighbours are windows of neighbours.
bool has_unit_windows(const ConvGeometry& g) {
  const auto is_unit = [](const WindowAxis& axis) {
    return axis.kernel == 1 && axis.stride == 1 && axis.padding == 0;
  };
  return is_unit(g.h) && is_unit(g.w);
}

/// The windows of a chunk's samples as rows of a matrix that is never stored.
template <class C>
struct Windows {
  const ConvGeometry& g;
  const C* input;  // of the chunk's first sample

  /// Output positions that stand side by side in one row of the output, and what they meet.
  struct Run {
    std::int64_t y, x;  // of the first
    int first, count;   // rows of the panel

    std::int64_t input_row(const ConvGeometry& g, std::int64_t i) const {
      return y * g.h.stride - g.h.padding + i * g.h.dilation;
    }
    std::int64_t input_column(const ConvGeometry& g, std::int64_t j) const {
      return x * g.w.stride - g.w.padding + j * g.w.dilation;
    }
  };

  /// out[k · kPanelRows + run.first …] for the depth of one group, whose planes start at `planes`.
  void write_run(const C* planes, const Run& run, C* out) const {
    if (is_inside(run)) return write_inside(planes, run, out);
    out += run.first;
    for (std::int64_t c = 0; c < g.channels_of_group(); ++c) {
      const C* plane = planes + c * g.input_plane();
      for (std::int64_t i = 0; i < g.h.kernel; ++i) {
        const std::int64_t row = run.input_row(g, i);
        if (row < 0 || row >= g.h.input) {
          for (std::int64_t j = 0; j < g.w.kernel; ++j, out += kPanelRows) {
            std::fill_n(out, run.count, C{0});
          }
          continue;
        }
        for (std::int64_t j = 0; j < g.w.kernel; ++j, out += kPanelRows) {
          write_step(plane + row * g.w.input, run.input_column(g, j), run.count, out);
        }
      }
    }
  }

  /// write_run of a whole panel whose windows lie inside and side by side.
  void write_inside(const C* planes, const Run& run, C* out) const {
    const C* corner = planes + run.input_row(g, 0) * g.w.input + run.input_column(g, 0);
    for (std::int64_t c = 0; c < g.channels_of_group(); ++c, corner += g.input_plane()) {
      const C* row = corner;
      for (std::int64_t i = 0; i < g.h.kernel; ++i, row += g.h.dilation * g.w.input) {
        for (std::int64_t j = 0; j < g.w.kernel; ++j, out += kPanelRows) {
          std::memcpy(out, row + j * g.w.dilation, kPanelRows * sizeof(C));
        }
      }
    }
  }

  bool is_inside(const Run& run) const {
    return run.count == kPanelRows && g.w.stride == 1 && run.input_row(g, 0) >= 0 &&
           run.input_row(g, g.h.kernel - 1) < g.h.input && run.input_column(g, 0) >= 0 &&
           run.input_column(g, g.w.kernel - 1) + kPanelRows <= g.w.input;
  }

  /// `count` elements of a row of the input from `column` on, a stride apart; 0 outside of it.
  void write_step(const C* row, std::int64_t column, int count, C* out) const {
    const std::int64_t stride = g.w.stride;
    const bool inside = column >= 0 && column + (count - 1) * stride < g.w.input;
    if (inside && stride == 1 && count == kPanelRows) {
      std::memcpy(out, row + column, kPanelRows * sizeof(C));
    } else if (inside) {
      for (int n = 0; n < count; ++n) out[n] = row[column + n * stride];
    } else {
      for (int n = 0; n < count; ++n) {
        const std::int64_t at = column + n * stride;
        out[n] = at >= 0 && at < g.w.input ? row[at] : C{0};
      }
    }
  }

  /// MatrixProduct::write_rows: row is sample · positions + position, batch the group.
  static void write_rows(const void* context, std::int64_t group, std::int64_t row, int count,
                         void* panel) {
    const auto& windows = *static_cast<const Windows*>(context);
    const ConvGeometry& g = windows.g;
    C* out = static_cast<C*>(panel);
    if (count < kPanelRows) std::fill_n(out, g.depth() * kPanelRows, C{0});
    for (int first = 0; first < count;) {
      const std::int64_t position = (row + first) % g.positions();
      const std::int64_t sample = (row + first) / g.positions();
      const std::int64_t x = position % g.w.output;
      const int side_by_side =
          static_cast<int>(std::min<std::int64_t>(count - first, g.w.output - x));
      const C* planes = windows.input +
                        (sample * g.channels + group * g.channels_of_group()) * g.input_plane();
      windows.write_run(planes, {position / g.w.output, x, first, side_by_side}, out);
      first += side_by_side;
    }
  }
};

template <class T>
void run_forward(const KernelArgs& args, const ConvGeometry& g) {
  using C = compute_type<T>;
  constexpr bool kDirect = std::is_same_v<T, C>;  // the product is the result
  Scratch input_memory, weight_memory, result_memory, bias_memory;
  const C* input = widened<T>(args.inputs[0], input_memory);
  const C* weight = widened<T>(args.inputs[1], weight_memory);
  const bool has_bias = args.inputs[2].present;
  const C* bias = has_bias ? widened<T>(args.inputs[2], bias_memory) : nullptr;
  const std::int64_t sample_size = g.filters * g.positions();
  C* result = nullptr;
  if constexpr (kDirect) {
    result = args.outputs[0].as<T>();
  } else {
    result = result_memory.get<C>(g.samples * sample_size);
  }
  const Windows<C> windows{g, input};
  MatrixProduct p;  // [positions,depth] x [filters,depth]^T
  p.batch = {g.groups};
  p.rows = {g.samples, g.positions()};
  if (has_unit_windows(g)) {
    p.a = input;
    p.a_batch = {g.depth() * g.positions()};
    p.a_rows = {g.channels * g.positions(), 1};
    p.a_depth = g.positions();
  } else {
    p.write_rows = Windows<C>::write_rows;
    p.context = &windows;
    p.a_batch = {0};
    p.a_rows = {0, 0};
  }
  p.b = weight;
  p.b_batch = {g.filters_of_group() * g.depth()};
  p.b_depth = 1;
  p.b_column = g.depth();
  p.c = result;
  p.c_batch = {g.filters_of_group() * g.positions()};
  p.c_rows = {sample_size, 1};
  p.c_column = g.positions();
  p.columns = g.filters_of_group();
  p.depth = g.depth();
  gemm<C>(p);
  if (kDirect && !has_bias) return;
  T* output = args.outputs[0].as<T>();
  parallel_for(g.samples * g.filters, [&](std::int64_t plane) {
    C* values = result + plane * g.positions();
    const C shift = has_bias ? bias[plane % g.filters] : C{0};
    for (std::int64_t i = 0; i < g.positions(); ++i) values[i] += shift;
    if (!kDirect) store_row(values, g.positions(), output + plane * g.positions(), 1);
  });
}

template <class T>
void run_backward_input(const KernelArgs& args, const ConvGeometry& g) {
  using C = compute_type<T>;
  thread_local Scratch columns_memory;
  Scratch weight_memory, grad_memory;
  const C* grad = widened<T>(args.inputs[0], grad_memory);
  const C* weight = widened<T>(args.inputs[1], weight_memory);
  for_each_chunk(g, [&](const Chunk& chunk) {
    C* columns = columns_memory.get<C>(g.groups * g.depth() * chunk.row_length);
    MatrixProduct p = grouped_problem(g, chunk);  // [positions,filters] x [filters,depth]
    p.a = grad + chunk.first * g.filters * g.positions();
    p.a_batch = {g.filters_of_group() * g.positions()};
    p.a_rows = {g.filters * g.positions(), 1};
    p.a_depth = g.positions();
    p.b = weight;
    p.b_batch = {g.filters_of_group() * g.depth()};
    p.b_depth = g.depth();
    p.b_column = 1;
    p.c = columns;
    p.c_batch = {g.depth() * chunk.row_length};
    p.c_rows = {g.positions(), 1};
    p.c_column = chunk.row_length;
    p.columns = g.depth();
    p.depth = g.filters_of_group();
    gemm<C>(p);
    fold(g, chunk, columns, args.outputs[0].as<T>());
  });
}

/// (samples, filters, positions) of a chunk as (filters, samples · positions).
template <class T>
void gather_filters(const ConvGeometry& g, const Chunk& chunk, const T* grad,
                    compute_type<T>* rows) {
  parallel_for(chunk.samples * g.filters, [&](std::int64_t task) {
    const std::int64_t sample = task / g.filters;
    const std::int64_t filter = task % g.filters;
    load_row(grad + (chunk.first * g.filters + task) * g.positions(), 1, g.positions(),
             rows + filter * chunk.row_length + sample * g.positions());
  });
}

template <class T>
void run_backward_weight(const KernelArgs& args, const ConvGeometry& g) {
  using C = compute_type<T>;
  thread_local Scratch columns_memory;
  Scratch grad_memory, part_memory;
  const std::int64_t size = g.filters * g.depth();
  std::vector<C> sums(static_cast<std::size_t>(size));
  for_each_chunk(g, [&](const Chunk& chunk) {
    C* columns = columns_memory.get<C>(g.groups * g.depth() * chunk.row_length);
    C* grad = grad_memory.get<C>(g.filters * chunk.row_length);
    C* part = part_memory.get<C>(size);
    unfold(g, chunk, args.inputs[1].as<const T>(), columns);
    gather_filters(g, chunk, args.inputs[0].as<const T>(), grad);
    MatrixProduct p;  // [filters,positions] x [depth,positions]^T
    p.batch = {g.groups};
    p.rows = {g.filters_of_group()};
    p.a = grad;
    p.a_batch = {g.filters_of_group() * chunk.row_length};
    p.a_rows = {chunk.row_length};
    p.a_depth = 1;
    p.b = columns;
    p.b_batch = {g.depth() * chunk.row_length};
    p.b_depth = 1;
    p.b_column = chunk.row_length;
    p.c = part;
    p.c_batch = {g.filters_of_group() * g.depth()};
    p.c_rows = {g.depth()};
    p.c_column = 1;
    p.columns = g.depth();
    p.depth = chunk.row_length;
    gemm<C>(p);
    add_row(sums.data(), part, size);
  });
  store_row(sums.data(), size, args.outputs[0].as<T>(), 1);
}

}  // namespace

void conv2d(const KernelArgs& args) {
  const ConvGeometry g(args.attributes<Conv2dAttrs>(), args.inputs[0], args.inputs[1],
                       args.outputs[0]);
  if (args.outputs[0].numel() == 0) return;
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() { run_forward<T>(args, g); });
}

void conv2d_backward_input(const KernelArgs& args) {
  const ConvGeometry g(args.attributes<Conv2dBackwardAttrs>(), args.outputs[0], args.inputs[1],
                       args.inputs[0]);
  if (args.outputs[0].numel() == 0) return;
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() { run_backward_input<T>(args, g); });
}

void conv2d_backward_weight(const KernelArgs& args) {
  const ConvGeometry g(args.attributes<Conv2dBackwardAttrs>(), args.inputs[1], args.outputs[0],
                       args.inputs[0]);
  if (args.outputs[0].numel() == 0) return;
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() { run_backward_weight<T>(args, g); });
}

}  // namespace tenon::cpu
