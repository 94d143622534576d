// Reductions on the CPU over any axes of any layout.
//
// An op gives how two values combine; the rest is here. Values arrive in rows of columns, each
// column an accumulator: a row is a stretch along a kept axis where that is the dense one, else a
// stretch of the reduced axis itself, whose columns are combined at the end. Rows go through a
// cascade of partial sums (Cascade in reduce.cpp), so that rounding errors grow with the logarithm of their
// number. Long reductions are cut into chunks by size alone: results do not depend on the number of
// threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "tensor/cpu/elementwise.h"

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

inline constexpr std::int64_t kColumns = 64;  // accumulators of one tile

/// How values combine, as functions over neighbouring accumulators: all that is compiled for each reduction
/// and compute type.
struct Combination {
  std::size_t accumulator_size = 0;  // bytes, at most kAccumulatorBytes
  /// Sets `n` accumulators to what changes nothing.
  void (*clear)(void* accumulators, std::int64_t n) = nullptr;
  /// Combines `rows` rows of `width` values, `stride` values apart, with `width` accumulators in turn.
  void (*add)(void* accumulators, const void* values, std::int64_t rows, std::int64_t width,
              std::int64_t stride) = nullptr;
  /// Combines `n` accumulators with as many others.
  void (*merge)(void* accumulators, const void* others, std::int64_t n) = nullptr;
  /// The results, of the output's compute type, of `n` accumulators.
  void (*finish)(const void* accumulators, std::int64_t n, void* results,
                 const void* functor) = nullptr;
};

inline constexpr std::size_t kAccumulatorBytes = 24;

/// Reduces as planned; `functor` is handed to combination.finish.
void run_reduction(const KernelArgs& args, const ReducePlan& plan, const Combination& combination,
                   const void* functor);

/// Reduces values of the compute type C with R and stores finish(accumulator), of the output's compute type
/// Out.
template <class C, class Out, class R, class Finish>
void run_reduction(const KernelArgs& args, const ReducePlan& plan, const Finish& finish) {
  using A = typename R::Accumulator;
  static_assert(sizeof(A) <= kAccumulatorBytes);
  constexpr Combination kCombination{
      sizeof(A),
      [](void* accumulators, std::int64_t n) {
        std::fill_n(static_cast<A*>(accumulators), n, R::identity());
      },
      [](void* accumulators, const void* values, std::int64_t rows, std::int64_t width,
         std::int64_t stride) {
        const auto add = [&](auto columns_of_row) {
          auto* columns = static_cast<A*>(accumulators);
          const auto* row = static_cast<const C*>(values);
          for (std::int64_t i = 0; i < rows; ++i, row += stride) {
#pragma GCC ivdep
            for (std::int64_t j = 0; j < columns_of_row; ++j) {
              columns[j] = R::combine(columns[j], static_cast<A>(row[j]));
            }
          }
        };
        if (width == kColumns) return add(std::integral_constant<std::int64_t, kColumns>{});
        add(width);
      },
      [](void* accumulators, const void* others, std::int64_t n) {
        auto* columns = static_cast<A*>(accumulators);
        const auto* other = static_cast<const A*>(others);
#pragma GCC ivdep
        for (std::int64_t j = 0; j < n; ++j) columns[j] = R::combine(columns[j], other[j]);
      },
      [](const void* accumulators, std::int64_t n, void* results, const void* functor) {
        const auto* columns = static_cast<const A*>(accumulators);
        const auto& function = *static_cast<const Finish*>(functor);
        for (std::int64_t j = 0; j < n; ++j) {
          static_cast<Out*>(results)[j] = static_cast<Out>(function(columns[j]));
        }
      }};
  run_reduction(args, plan, kCombination, &finish);
}

/// The same for the axes of ReduceAttrs.
template <class C, class Out, class R, class Finish>
void run_reduction(const KernelArgs& args, const Finish& finish) {
  run_reduction<C, Out, R>(args, plan_reduction(args), finish);
}

/// Sums in the compute type of floats, in int64 for integers and bool.
template <class C>
struct Sum {
  using Accumulator = std::conditional_t<std::is_integral_v<C>, std::int64_t, C>;
  static Accumulator identity() { return 0; }
  static Accumulator combine(Accumulator a, Accumulator b) { return wrap_add(a, b); }
};

template <class C>
struct Largest {
  using Accumulator = C;
  using Limits = std::numeric_limits<Accumulator>;
  static Accumulator identity() {
    return Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
  }
  static Accumulator combine(Accumulator a, Accumulator b) { return nan_max(a, b); }
};

template <class C>
struct Smallest {
  using Accumulator = C;
  using Limits = std::numeric_limits<Accumulator>;
  static Accumulator identity() {
    return Limits::has_infinity ? Limits::infinity() : Limits::max();
  }
  static Accumulator combine(Accumulator a, Accumulator b) { return nan_min(a, b); }
};

}  // namespace tenon::cpu
