// How reductions are walked; see the header.
#include "tensor/cpu/reduce.h"

#include <cstring>

#include "tensor/parallel.h"
#include "tensor/rules/reduction.h"
#include "tensor/support/check.h"

namespace tenon::cpu {
namespace {

/// Appends an axis, merged into the last one where that continues it in all stride lists.
void append_axis(Extents& sizes, std::int64_t size,
                 std::initializer_list<std::pair<Extents*, std::int64_t>> strides) {
  const int last = sizes.size() - 1;
  bool merges = last >= 0;
  for (const auto& [list, stride] : strides) merges = merges && (*list)[last] == stride * size;
  if (merges) {
    sizes[last] *= size;
    for (const auto& [list, stride] : strides) (*list)[last] = stride;
    return;
  }
  sizes.push_back(size);
  for (const auto& [list, stride] : strides) list->push_back(stride);
}

struct Axis {
  std::int64_t size, stride, output_stride;
};

}  // namespace

std::int64_t offset_of(std::int64_t position, const Extents& sizes, const Extents& strides) {
  std::int64_t offset = 0;
  for (int axis = sizes.size() - 1; axis > 0; --axis) {
    offset += position % sizes[axis] * strides[axis];
    position /= sizes[axis];
  }
  return sizes.empty() ? 0 : offset + position * strides[0];
}

ReducePlan plan_reduction(const KernelArgs& args) {
  const auto& attrs = args.attributes<ReduceAttrs>();
  return plan_reduction(args, attrs.dim, attrs.keepdim);
}

ReducePlan plan_reduction(const KernelArgs& args, const std::vector<std::int64_t>& dim,
                          bool keepdim) {
  const TensorView& input = args.inputs[0];
  const TensorView& output = args.outputs[0];
  const auto is_reduced = ops::reduced_axes(args.op->name, dim, input.rank());
  std::vector<Axis> kept;
  std::vector<Axis> reduced;
  int out = 0;
  for (int axis = 0; axis < input.rank(); ++axis) {
    const bool drop = is_reduced[static_cast<std::size_t>(axis)];
    if (input.sizes[axis] != 1) {
      (drop ? reduced : kept)
          .push_back({input.sizes[axis], input.strides[axis], drop ? 0 : output.strides[out]});
    }
    out += drop && !keepdim ? 0 : 1;
  }
  std::stable_sort(reduced.begin(), reduced.end(),
                   [](const Axis& a, const Axis& b) { return a.stride > b.stride; });

  ReducePlan plan;
  for (const Axis& axis : reduced) {
    append_axis(plan.reduced_sizes, axis.size, {{&plan.reduced_strides, axis.stride}});
  }
  if (plan.reduced_sizes.empty()) append_axis(plan.reduced_sizes, 1, {{&plan.reduced_strides, 0}});
  for (const Axis& axis : kept) {
    append_axis(plan.kept_sizes, axis.size,
                {{&plan.kept_strides, axis.stride}, {&plan.output_strides, axis.output_stride}});
  }
  // The densest kept axis gives the rows unless a reduced axis is denser.
  int column = -1;
  for (int axis = 0; axis < plan.kept_sizes.size(); ++axis) {
    if (plan.kept_strides[axis] == 0) continue;
    if (column < 0 || plan.kept_strides[axis] < plan.kept_strides[column]) column = axis;
  }
  const bool reduced_is_dense =
      plan.reduced() > 1 && column >= 0 && plan.reduced_strides.back() < plan.kept_strides[column];
  if (column >= 0 && !reduced_is_dense) {
    plan.by_columns = true;
    plan.columns = plan.kept_sizes[column];
    plan.column_stride = plan.kept_strides[column];
    plan.column_output_stride = plan.output_strides[column];
    plan.kept_sizes.erase(column);
    plan.kept_strides.erase(column);
    plan.output_strides.erase(column);
  }
  return plan;
}

void require_elements(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  TENON_CHECK(args.outputs[0].numel() == 0 || input.numel() > 0, ShapeError,
              "[{}] an empty axis is reduced; needed at least one element", args.op->name);
}

namespace {

constexpr std::int64_t kReduceChunk = 1 << 16;  // elements of one piece of a long reduction

/// Combines rows of up to kColumns values. Level 0 takes 32 rows, level 1 32 results of level 0, …
class Cascade {
 public:
  Cascade(const Combination& combination, std::int64_t width)
      : combination_(combination), width_(width) {
    clear(0);
  }

  /// `rows` rows of `width` values of `size` bytes, `stride` values apart.
  void add(const char* values, std::int64_t rows, std::int64_t width, std::int64_t stride,
           std::int64_t size) {
    while (rows > 0) {
      const std::int64_t count = std::min(rows, kFan - rows_ % kFan);
      combination_.add(levels_[0], values, count, width, stride);
      values += count * stride * size;
      rows -= count;
      rows_ += count;
      if (rows_ % kFan == 0) carry();
    }
  }
  /// A row of accumulators.
  void merge(const void* row) {
    combination_.merge(levels_[0], row, width_);
    if (++rows_ % kFan == 0) carry();
  }
  /// The combined columns.
  const void* finish() {
    for (int l = 1; l <= top_; ++l) combination_.merge(levels_[0], levels_[l], width_);
    return levels_[0];
  }
  /// All columns combined into one, pairwise.
  const void* finish_one() {
    finish();
    const std::size_t size = combination_.accumulator_size;
    combination_.clear(levels_[0] + static_cast<std::size_t>(width_) * size, kColumns - width_);
    for (std::int64_t half = kColumns / 2; half > 0; half /= 2) {
      combination_.merge(levels_[0], levels_[0] + static_cast<std::size_t>(half) * size, half);
    }
    return levels_[0];
  }

 private:
  static constexpr std::int64_t kFan = 32;
  static constexpr int kLevels = 5;
  void clear(int l) { combination_.clear(levels_[l], width_); }
  void carry() {
    std::int64_t full = kFan;
    for (int l = 0; l + 1 < kLevels && rows_ % full == 0; ++l, full *= kFan) {
      if (l + 1 > top_) clear(top_ = l + 1);
      combination_.merge(levels_[l + 1], levels_[l], width_);
      clear(l);
    }
  }

  const Combination& combination_;
  std::int64_t width_;
  std::int64_t rows_ = 0;
  int top_ = 0;
  alignas(64) std::byte levels_[kLevels][kColumns * kAccumulatorBytes];
};

/// The walk over one call's values: tiles of up to kColumns neighbouring outputs.
class Reduction {
 public:
  Reduction(const ReducePlan& plan, const Combination& combination, const TensorView& input)
      : plan_(plan),
        combination_(combination),
        dtype_(input.dtype),
        access_(element_access(input.dtype)),
        size_(access_.size),
        value_size_(access_.value_size),
        input_(input.as<const char>()),
        tiles_of_row_((plan.columns + kColumns - 1) / kColumns) {}

  std::int64_t tiles() const { return plan_.outer() * tiles_of_row_; }
  /// Outputs of a tile.
  std::int64_t width(std::int64_t tile) const {
    return std::min(kColumns, plan_.columns - tile % tiles_of_row_ * kColumns);
  }
  /// The tile's first output, in elements.
  std::int64_t output_offset(std::int64_t tile) const {
    return offset_of(tile / tiles_of_row_, plan_.kept_sizes, plan_.output_strides) +
           tile % tiles_of_row_ * kColumns * plan_.column_output_stride;
  }

  /// Reduces positions [begin, end) of the reduced axes for one tile; copies its accumulators to
  /// `result`.
  void run(std::int64_t tile, std::int64_t begin, std::int64_t end, void* result) const {
    const char* base =
        input_ + size_ * offset_of(tile / tiles_of_row_, plan_.kept_sizes, plan_.kept_strides);
    if (plan_.by_columns) {
      const std::int64_t first = tile % tiles_of_row_ * kColumns;
      along_columns(base + size_ * first * plan_.column_stride, width(tile), begin, end, result);
    } else {
      along_reduced(base, begin, end, result);
    }
  }

 private:
  void along_reduced(const char* base, std::int64_t begin, std::int64_t end, void* result) const {
    const int last = plan_.reduced_sizes.size() - 1;
    const std::int64_t run = plan_.reduced_sizes[last];
    const std::int64_t stride = plan_.reduced_strides[last] * size_;
    Cascade cascade(combination_, std::min(kColumns, run));
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t n = std::min(run - at % run, end - at);
      RowReader reader(dtype_,
                       base + size_ * offset_of(at, plan_.reduced_sizes, plan_.reduced_strides),
                       stride, n);
      for (std::int64_t i = 0; i < n; i += kBlock) {
        const std::int64_t block = std::min(kBlock, n - i);
        const auto* values = static_cast<const char*>(reader.untyped_block(i, block));
        const std::int64_t full = block / kColumns;
        cascade.add(values, full, kColumns, kColumns, value_size_);
        const std::int64_t rest = block % kColumns;
        if (rest > 0)
          cascade.add(values + full * kColumns * value_size_, 1, rest, rest, value_size_);
      }
      at += n;
    }
    std::memcpy(result, cascade.finish_one(), combination_.accumulator_size);
  }

  void along_columns(const char* base, std::int64_t width, std::int64_t begin, std::int64_t end,
                     void* result) const {
    Cascade cascade(combination_, width);
    const int last = plan_.reduced_sizes.size() - 1;
    const std::int64_t run = plan_.reduced_sizes[last];
    const std::int64_t stride = plan_.reduced_strides[last];
    const bool in_place = access_.is_value && plan_.column_stride == 1;
    BlockBuffer buffer;
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t n = std::min(run - at % run, end - at);
      const char* row = base + size_ * offset_of(at, plan_.reduced_sizes, plan_.reduced_strides);
      if (in_place) {
        cascade.add(row, n, width, stride, size_);
      } else {
        const std::int64_t together = kBlock / width;
        for (std::int64_t i = 0; i < n; i += together) {
          const std::int64_t rows = std::min(together, n - i);
          for (std::int64_t k = 0; k < rows; ++k, row += size_ * stride) {
            access_.load(row, plan_.column_stride * size_, width,
                         buffer.bytes + k * width * value_size_);
          }
          cascade.add(reinterpret_cast<const char*>(buffer.bytes), rows, width, width, value_size_);
        }
      }
      at += n;
    }
    std::memcpy(result, cascade.finish(),
                static_cast<std::size_t>(width) * combination_.accumulator_size);
  }

  const ReducePlan& plan_;
  const Combination& combination_;
  DType dtype_;
  const ElementAccess& access_;
  std::int64_t size_;        // bytes of an element
  std::int64_t value_size_;  // and of a value
  const char* input_;
  std::int64_t tiles_of_row_;
};

}  // namespace

void run_reduction(const KernelArgs& args, const ReducePlan& plan, const Combination& combination,
                   const void* functor) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const Reduction reduction(plan, combination, args.inputs[0]);
  const std::int64_t tiles = reduction.tiles();
  const std::int64_t reduced = plan.reduced();
  const std::int64_t width = std::min(kColumns, plan.columns);
  const ElementAccess& access = element_access(output.dtype);
  const auto store = [&](std::int64_t tile, const void* accumulators) {
    alignas(64) std::byte results[kColumns * sizeof(double)];
    const std::int64_t count = reduction.width(tile);
    combination.finish(accumulators, count, results, functor);
    access.store(results, count, output.as<char>() + reduction.output_offset(tile) * access.size,
                 plan.column_output_stride * access.size);
  };

  const std::int64_t chunk = std::max<std::int64_t>(kReduceChunk / width, 1);
  const std::int64_t chunks = tiles < 64 && reduced > 2 * chunk ? (reduced + chunk - 1) / chunk : 1;
  if (chunks == 1) {
    const std::int64_t grain =
        std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(1, reduced * width));
    parallel_ranges(tiles, grain, [&](std::int64_t begin, std::int64_t end) {
      alignas(64) std::byte accumulators[kColumns * kAccumulatorBytes];
      for (std::int64_t tile = begin; tile < end; ++tile) {
        reduction.run(tile, 0, reduced, accumulators);
        store(tile, accumulators);
      }
    });
    return;
  }
  const std::size_t row_bytes = static_cast<std::size_t>(width) * combination.accumulator_size;
  std::vector<std::byte> partial(static_cast<std::size_t>(tiles * chunks) * row_bytes);
  parallel_for(tiles * chunks, [&](std::int64_t task) {
    const std::int64_t begin = task % chunks * chunk;
    reduction.run(task / chunks, begin, std::min(reduced, begin + chunk),
                  &partial[static_cast<std::size_t>(task) * row_bytes]);
  });
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    Cascade cascade(combination, width);
    for (std::int64_t i = 0; i < chunks; ++i) {
      cascade.merge(&partial[static_cast<std::size_t>(tile * chunks + i) * row_bytes]);
    }
    store(tile, cascade.finish());
  }
}

}  // namespace tenon::cpu
