// Reductions on the CPU over any axes of any layout.
//
// An op gives how two values combine; the rest is here. Values arrive in rows of columns, each
// column an accumulator: a row is a stretch along a kept axis where that is the dense one, else a
// stretch of the reduced axis itself, whose columns are combined at the end. Rows go through a
// cascade of partial sums (Cascade), so that rounding errors grow with the logarithm of their
// number. Long reductions are cut into chunks by size alone: results do not depend on the number of
// threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "tensor/cpu/elementwise.h"
#include "tensor/parallel.h"

namespace tenon::cpu {

/// How one call is walked. Strides are in elements; the reduced axes are in order of falling
/// stride.
struct ReducePlan {
  Extents kept_sizes, kept_strides, output_strides;  // without the column axis
  Extents reduced_sizes, reduced_strides;            // at least one axis
  std::int64_t columns = 1;                          // along the column axis; 1: there is none
  std::int64_t column_stride = 0;
  std::int64_t column_output_stride = 0;
  bool by_columns = false;  // rows run along the column axis, not along the last reduced axis

  std::int64_t outer() const { return kept_sizes.product(); }
  std::int64_t reduced() const { return reduced_sizes.product(); }
};

ReducePlan plan_reduction(const KernelArgs& args);
/// The same for given axes.
ReducePlan plan_reduction(const KernelArgs& args, const std::vector<std::int64_t>& dim,
                          bool keepdim);
/// ShapeError when values would have to come from nothing.
void require_elements(const KernelArgs& args);
/// Σ index·stride of the i-th position, row-major.
std::int64_t offset_of(std::int64_t position, const Extents& sizes, const Extents& strides);

inline constexpr std::int64_t kColumns = 64;           // accumulators of one tile
inline constexpr std::int64_t kReduceChunk = 1 << 16;  // elements of one piece of a long reduction

/// Combines rows of up to kColumns values. Level 0 takes 32 rows, level 1 32 results of level 0, …
template <class R>
class Cascade {
 public:
  using A = typename R::Accumulator;
  explicit Cascade(std::int64_t width) : width_(width) { clear(0); }

  template <class C>
  void add(const C* row, std::int64_t width) {
    A* level = levels_[0];
#pragma GCC ivdep
    for (std::int64_t j = 0; j < width; ++j)
      level[j] = R::combine(level[j], static_cast<A>(row[j]));
    if (++rows_ % kFan == 0) carry();
  }
  /// The combined columns.
  A* finish() {
    for (int l = 1; l <= top_; ++l) combine_into(levels_[0], levels_[l]);
    return levels_[0];
  }
  /// All columns combined into one, pairwise.
  A finish_one() {
    A* values = finish();
    for (std::int64_t j = width_; j < kColumns; ++j) values[j] = R::identity();
    for (std::int64_t half = kColumns / 2; half > 0; half /= 2) {
      for (std::int64_t j = 0; j < half; ++j) values[j] = R::combine(values[j], values[j + half]);
    }
    return values[0];
  }

 private:
  static constexpr std::int64_t kFan = 32;
  static constexpr int kLevels = 5;
  void clear(int l) {
    for (std::int64_t j = 0; j < width_; ++j) levels_[l][j] = R::identity();
  }
  void combine_into(A* target, const A* source) {
    for (std::int64_t j = 0; j < width_; ++j) target[j] = R::combine(target[j], source[j]);
  }
  void carry() {
    std::int64_t full = kFan;
    for (int l = 0; l + 1 < kLevels && rows_ % full == 0; ++l, full *= kFan) {
      if (l + 1 > top_) clear(top_ = l + 1);
      combine_into(levels_[l + 1], levels_[l]);
      clear(l);
    }
  }

  std::int64_t width_;
  std::int64_t rows_ = 0;
  int top_ = 0;
  A levels_[kLevels][kColumns];
};

/// The walk over one call's values. T is the input's element type.
template <class T, class R>
class Reduction {
 public:
  using A = typename R::Accumulator;
  Reduction(const ReducePlan& plan, const T* input) : plan_(plan), input_(input) {
    tiles_ = (plan.columns + kColumns - 1) / kColumns;
  }

  /// Results in tile order: kTile accumulators for each of outer() x tiles.
  std::int64_t tiles() const { return plan_.outer() * tiles_; }

  /// Reduces positions [begin, end) of the reduced axes for one tile; writes its columns to
  /// `result`.
  void run(std::int64_t tile, std::int64_t begin, std::int64_t end, A* result) const {
    const T* base = input_ + offset_of(tile / tiles_, plan_.kept_sizes, plan_.kept_strides);
    if (!plan_.by_columns) {
      *result = along_reduced(base, begin, end);
      return;
    }
    const std::int64_t first = tile % tiles_ * kColumns;
    const std::int64_t width = std::min(kColumns, plan_.columns - first);
    along_columns(base + first * plan_.column_stride, width, begin, end, result);
  }

  /// Calls write(output offset, column value) for the results of one tile.
  template <class W>
  void for_each_output(std::int64_t tile, W&& write) const {
    const std::int64_t base = offset_of(tile / tiles_, plan_.kept_sizes, plan_.output_strides);
    const std::int64_t first = tile % tiles_ * kColumns;
    const std::int64_t width = std::min(kColumns, plan_.columns - first);
    for (std::int64_t j = 0; j < width; ++j) {
      write(base + (first + j) * plan_.column_output_stride, j);
    }
  }

 private:
  static constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));

  A along_reduced(const T* base, std::int64_t begin, std::int64_t end) const {
    const int last = plan_.reduced_sizes.size() - 1;
    const std::int64_t run = plan_.reduced_sizes[last];
    const std::int64_t stride = plan_.reduced_strides[last];
    Cascade<R> cascade(std::min(kColumns, run));
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t n = std::min(run - at % run, end - at);
      const T* first = base + offset_of(at, plan_.reduced_sizes, plan_.reduced_strides);
      RowReader<T> reader(reinterpret_cast<const char*>(first), stride * kSize, n);
      for (std::int64_t i = 0; i < n; i += kBlock) {
        const std::int64_t block = std::min(kBlock, n - i);
        const auto* values = reader.block(i, block);
        for (std::int64_t j = 0; j < block; j += kColumns) {
          cascade.add(values + j, std::min(kColumns, block - j));
        }
      }
      at += n;
    }
    return cascade.finish_one();
  }

  void along_columns(const T* base, std::int64_t width, std::int64_t begin, std::int64_t end,
                     A* result) const {
    Cascade<R> cascade(width);
    const int last = plan_.reduced_sizes.size() - 1;
    const std::int64_t run = plan_.reduced_sizes[last];
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t n = std::min(run - at % run, end - at);
      const T* row = base + offset_of(at, plan_.reduced_sizes, plan_.reduced_strides);
      for (std::int64_t i = 0; i < n; ++i, row += plan_.reduced_strides[last]) {
        RowReader<T> reader(reinterpret_cast<const char*>(row), plan_.column_stride * kSize, width);
        cascade.add(reader.block(0, width), width);
      }
      at += n;
    }
    std::copy_n(cascade.finish(), width, result);
  }

  const ReducePlan& plan_;
  const T* input_;
  std::int64_t tiles_;
};

/// Reduces with R and stores finish(accumulator) as Out.
template <class T, class Out, class R, class Finish>
void run_reduction(const KernelArgs& args, const ReducePlan& plan, Finish&& finish) {
  using A = typename R::Accumulator;
  if (args.outputs[0].numel() == 0) return;
  const Reduction<T, R> reduction(plan, args.inputs[0].as<T>());
  Out* output = args.outputs[0].as<Out>();
  const std::int64_t tiles = reduction.tiles();
  const std::int64_t reduced = plan.reduced();
  const std::int64_t width = std::min(kColumns, plan.columns);
  const auto store = [&](std::int64_t tile, const A* values) {
    reduction.for_each_output(tile, [&](std::int64_t offset, std::int64_t j) {
      output[offset] = convert<Out>(finish(values[j]));
    });
  };

  const std::int64_t chunk = std::max<std::int64_t>(kReduceChunk / width, 1);
  const std::int64_t chunks = tiles < 64 && reduced > 2 * chunk ? (reduced + chunk - 1) / chunk : 1;
  if (chunks == 1) {
    const std::int64_t grain =
        std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(1, reduced * width));
    parallel_ranges(tiles, grain, [&](std::int64_t begin, std::int64_t end) {
      A values[kColumns];
      for (std::int64_t tile = begin; tile < end; ++tile) {
        reduction.run(tile, 0, reduced, values);
        store(tile, values);
      }
    });
    return;
  }
  const auto partial = std::make_unique<A[]>(static_cast<std::size_t>(tiles * chunks * width));
  parallel_for(tiles * chunks, [&](std::int64_t task) {
    const std::int64_t begin = task % chunks * chunk;
    reduction.run(task / chunks, begin, std::min(reduced, begin + chunk),
                  &partial[static_cast<std::size_t>(task * width)]);
  });
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    Cascade<R> cascade(width);
    for (std::int64_t i = 0; i < chunks; ++i) {
      cascade.add(&partial[static_cast<std::size_t>((tile * chunks + i) * width)], width);
    }
    store(tile, cascade.finish());
  }
}

/// The same for the axes of ReduceAttrs.
template <class T, class Out, class R, class Finish>
void run_reduction(const KernelArgs& args, Finish&& finish) {
  run_reduction<T, Out, R>(args, plan_reduction(args), std::forward<Finish>(finish));
}

/// Sums in the compute type of floats, in int64 for integers and bool.
template <class T>
struct Sum {
  using Accumulator = std::conditional_t<std::is_integral_v<T>, std::int64_t, compute_type<T>>;
  static Accumulator identity() { return 0; }
  static Accumulator combine(Accumulator a, Accumulator b) { return wrap_add(a, b); }
};

template <class T>
struct Largest {
  using Accumulator = compute_type<T>;
  using Limits = std::numeric_limits<Accumulator>;
  static Accumulator identity() {
    return Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
  }
  static Accumulator combine(Accumulator a, Accumulator b) { return nan_max(a, b); }
};

template <class T>
struct Smallest {
  using Accumulator = compute_type<T>;
  using Limits = std::numeric_limits<Accumulator>;
  static Accumulator identity() {
    return Limits::has_infinity ? Limits::infinity() : Limits::max();
  }
  static Accumulator combine(Accumulator a, Accumulator b) { return nan_min(a, b); }
};

}  // namespace tenon::cpu
