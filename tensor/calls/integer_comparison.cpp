#include "tensor/calls/integer_comparison.h"

#include <cmath>
#include <limits>
#include <type_traits>

namespace tenon::ops {
namespace {

struct Range {
  std::int64_t lowest = 0;
  std::int64_t largest = 0;
};

Range range_of(DType dtype) {
  return dispatch_all(dtype, []<class T>() -> Range {
    if constexpr (std::is_integral_v<T>) {
      return {std::numeric_limits<T>::lowest(), std::numeric_limits<T>::max()};
    } else {
      return {};
    }
  });
}

/// What all comparisons are where every x is below the number.
bool holds_below(Comparison op) {
  return op == Comparison::lt || op == Comparison::le || op == Comparison::ne;
}
bool holds_above(Comparison op) {
  return op == Comparison::gt || op == Comparison::ge || op == Comparison::ne;
}

}  // namespace

IntegerComparison compare_integers(Comparison op, const Number& number, DType dtype) {
  const Range range = range_of(dtype);
  const double real = number.to_double();
  if (std::isnan(real)) return {op == Comparison::ne};
  // The largest integer that is not above the number.
  const double floor = std::floor(real);
  if (!number.is_integer() && floor >= 0x1p63) return {holds_below(op)};
  if (!number.is_integer() && floor < -0x1p63) return {holds_above(op)};
  const std::int64_t below =
      number.is_integer() ? number.integer() : static_cast<std::int64_t>(floor);
  const bool is_whole = number.is_integer() || floor == real;
  if (below > range.largest || (below == range.largest && !is_whole)) return {holds_below(op)};
  if (below < range.lowest) return {holds_above(op)};
  if (is_whole || op == Comparison::le || op == Comparison::gt) return {{}, below};
  // The number lies between two integers, the upper of which is in range too.
  if (op == Comparison::lt || op == Comparison::ge) return {{}, below + 1};
  return {op == Comparison::ne};
}

}  // namespace tenon::ops
