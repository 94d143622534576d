// Sums of gradients that meet in one place are taken by one thread in the order of the indices, so
// they do not depend on the number of threads; 16-bit floats are summed in float32.
#include "tensor/cpu/indexing.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/reduce.h"
#include "tensor/ops/indexing_attributes.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::cpu {
namespace {

/// Elements of one task.
constexpr std::int64_t kGrain = 1 << 15;

/// The indices as int64, each checked to be in [0, limit).
std::vector<std::int64_t> checked_indices(const KernelArgs& args, std::int64_t limit) {
  const TensorView& view = args.inputs[1];
  std::vector<std::int64_t> indices(static_cast<std::size_t>(view.numel()));
  if (view.dtype == DType::int32) {
    std::copy_n(view.as<std::int32_t>(), indices.size(), indices.begin());
  } else {
    std::copy_n(view.as<std::int64_t>(), indices.size(), indices.begin());
  }
  for (std::size_t i = 0; i < indices.size(); ++i) {
    TENON_CHECK(indices[i] >= 0 && indices[i] < limit, ValueError,
                "[{}] index {} at position {}; needed 0 <= index < {}", args.op->name, indices[i],
                i, limit);
  }
  return indices;
}

int axis_in(std::int64_t dim, int rank) { return static_cast<int>(dim < 0 ? dim + rank : dim); }

/// Product of the sizes of axes [begin, end).
std::int64_t product(const Extents& sizes, int begin, int end) {
  std::int64_t result = 1;
  for (int axis = begin; axis < end; ++axis) result *= sizes[axis];
  return result;
}

/// Which positions of an index list name each of `rows` rows: a stable counting sort.
struct Groups {
  Groups(const std::vector<std::int64_t>& indices, std::int64_t rows)
      : begin(static_cast<std::size_t>(rows) + 1), positions(indices.size()) {
    for (std::int64_t index : indices) ++begin[static_cast<std::size_t>(index) + 1];
    for (std::size_t row = 1; row < begin.size(); ++row) begin[row] += begin[row - 1];
    std::vector<std::int64_t> next(begin.begin(), begin.end() - 1);
    for (std::size_t i = 0; i < indices.size(); ++i) {
      std::int64_t& slot = next[static_cast<std::size_t>(indices[i])];
      positions[static_cast<std::size_t>(slot++)] = static_cast<std::int64_t>(i);
    }
  }
  std::span<const std::int64_t> of(std::int64_t row) const {
    const auto first = static_cast<std::size_t>(begin[static_cast<std::size_t>(row)]);
    const auto last = static_cast<std::size_t>(begin[static_cast<std::size_t>(row) + 1]);
    return std::span(positions).subspan(first, last - first);
  }
  std::vector<std::int64_t> begin;
  std::vector<std::int64_t> positions;
};

/// target = Σ of the `n` elements at source + position·n, in the order of the positions.
template <class T>
void sum_rows(T* target, const T* source, std::int64_t n, std::span<const std::int64_t> positions) {
  if (positions.empty()) {
    std::fill_n(target, n, T(compute_type<T>(0)));
    return;
  }
  using C = compute_type<T>;
  RowWriter writer(dtype_of<T>, target, sizeof(T));
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, n - begin);
    C* sum = writer.block<C>(begin);
    std::fill_n(sum, count, C(0));
    for (std::int64_t position : positions) {
      RowReader reader(dtype_of<T>, source + position * n, sizeof(T), n);
      const C* values = reader.block<C>(begin, count);
#pragma GCC ivdep
      for (std::int64_t i = 0; i < count; ++i) sum[i] += values[i];
    }
    writer.finish(begin, count);
  }
}

/// Lines along one axis of a tensor: the other axes, and the axis itself.
struct Lines {
  Lines(const TensorView& view, int axis) : sizes(view.sizes), strides(view.strides) {
    length = sizes[axis];
    stride = strides[axis];
    sizes.erase(axis);
    strides.erase(axis);
  }
  Extents sizes, strides;
  std::int64_t length = 0, stride = 0;
};

/// Sums the gradient's line into `target`, which holds zeros.
template <class T>
void scatter_line(compute_type<T>* target, std::int64_t stride, const T* gradient,
                  std::int64_t gradient_stride, const std::int64_t* index,
                  std::int64_t index_stride, std::int64_t n) {
  for (std::int64_t k = 0; k < n; ++k) {
    target[index[k * index_stride] * stride] +=
        static_cast<compute_type<T>>(gradient[k * gradient_stride]);
  }
}

template <class T>
void scatter(const TensorView& gradient, const std::vector<std::int64_t>& indices,
             const TensorView& output, int axis) {
  std::memset(output.data, 0, static_cast<std::size_t>(output.numel()) * sizeof(T));
  if (indices.empty()) return;
  const Lines from(gradient, axis);
  const Lines to(output, axis);
  TensorView index_view = gradient;
  index_view.strides = contiguous_strides(gradient.sizes);
  const Lines by(index_view, axis);
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / (from.length + to.length));
  parallel_ranges(from.sizes.product(), grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<compute_type<T>> line(std::is_same_v<T, compute_type<T>> ? 0 : to.length);
    for (std::int64_t i = begin; i < end; ++i) {
      T* target = output.as<T>() + offset_of(i, from.sizes, to.strides);
      const T* source = gradient.as<T>() + offset_of(i, from.sizes, from.strides);
      const std::int64_t* index = indices.data() + offset_of(i, from.sizes, by.strides);
      if constexpr (std::is_same_v<T, compute_type<T>>) {
        scatter_line<T>(target, to.stride, source, from.stride, index, by.stride, from.length);
      } else {
        std::fill(line.begin(), line.end(), compute_type<T>(0));
        scatter_line<T>(line.data(), 1, source, from.stride, index, by.stride, from.length);
        for (std::int64_t k = 0; k < from.length; ++k) {
          const std::int64_t at = index[k * by.stride];
          target[at * to.stride] = T(line[static_cast<std::size_t>(at)]);
        }
      }
    }
  });
}

template <class Word>
void gather_words(const TensorView& input, const std::vector<std::int64_t>& indices,
                  const TensorView& output, int axis) {
  Extents strides = input.strides;
  const std::int64_t step = strides[axis];
  strides[axis] = 0;
  const auto count = static_cast<std::int64_t>(indices.size());
  parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t at =
          offset_of(i, output.sizes, strides) + indices[static_cast<std::size_t>(i)] * step;
      output.as<Word>()[i] = input.as<Word>()[at];
    }
  });
}

}  // namespace

void run_index_select(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const int axis = axis_in(args.attributes<AxisAttrs>().dim, input.rank());
  const std::int64_t slices = input.sizes[axis];
  const auto indices = checked_indices(args, slices);
  const auto count = static_cast<std::int64_t>(indices.size());
  const std::int64_t outer = product(input.sizes, 0, axis);
  const std::int64_t bytes = product(input.sizes, axis + 1, input.rank()) *
                             static_cast<std::int64_t>(size_of(input.dtype));
  if (bytes == 0 || count == 0) return;
  const std::int64_t grain = std::max<std::int64_t>(1, 4 * kGrain / bytes);
  parallel_ranges(outer * count, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t slice = i / count * slices + indices[static_cast<std::size_t>(i % count)];
      std::memcpy(args.outputs[0].as<char>() + i * bytes, input.as<char>() + slice * bytes,
                  static_cast<std::size_t>(bytes));
    }
  });
}

void run_index_select_backward(const KernelArgs& args) {
  const TensorView& gradient = args.inputs[0];
  const TensorView& output = args.outputs[0];
  const auto& attrs = args.attributes<IndexSelectBackwardAttrs>();
  const int axis = axis_in(attrs.dim, output.rank());
  const std::int64_t slices = output.sizes[axis];
  const Groups groups(checked_indices(args, slices), slices);
  const std::int64_t inner = product(output.sizes, axis + 1, output.rank());
  const std::int64_t outer_step = gradient.sizes[axis] * inner;
  if (output.numel() == 0) return;
  dispatch_float(output.dtype, [&]<class T>() {
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / inner);
    parallel_ranges(output.numel() / inner, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        sum_rows(output.as<T>() + row * inner, gradient.as<T>() + row / slices * outer_step, inner,
                 groups.of(row % slices));
      }
    });
  });
}

void run_gather(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  if (args.outputs[0].rank() == 0) {  // a scalar counts as one element along one axis
    checked_indices(args, 1);
    std::memcpy(args.outputs[0].data, input.data, size_of(input.dtype));
    return;
  }
  const int axis = axis_in(args.attributes<AxisAttrs>().dim, input.rank());
  const auto indices = checked_indices(args, input.sizes[axis]);
  switch (size_of(input.dtype)) {
    case 1: return gather_words<std::uint8_t>(input, indices, args.outputs[0], axis);
    case 2: return gather_words<std::uint16_t>(input, indices, args.outputs[0], axis);
    case 4: return gather_words<std::uint32_t>(input, indices, args.outputs[0], axis);
    default: return gather_words<std::uint64_t>(input, indices, args.outputs[0], axis);
  }
}

void run_gather_backward(const KernelArgs& args) {
  const TensorView& gradient = args.inputs[0];
  const TensorView& output = args.outputs[0];
  if (output.rank() == 0) {
    checked_indices(args, 1);
    std::memcpy(output.data, gradient.data, size_of(output.dtype));
    return;
  }
  const int axis = axis_in(args.attributes<GatherBackwardAttrs>().dim, output.rank());
  const auto indices = checked_indices(args, output.sizes[axis]);
  if (output.numel() == 0) return;
  dispatch_float(output.dtype, [&]<class T>() { scatter<T>(gradient, indices, output, axis); });
}

}  // namespace tenon::cpu
