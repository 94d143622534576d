#include "tensor/value_range.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "tensor/ops/attributes.h"

namespace tenon::ranges {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

ValueRange number_range(const Scalar& number) {
  if (!number.is_constant()) return {};
  return {number.value(), number.value()};
}

/// Operand 1, or the number of BinaryAttrs in its place.
ValueRange second(Operands operands, const Attrs& attrs) {
  if (operands.size() > 1 && operands[1]) return *operands[1];
  return number_range(attrs.as<BinaryAttrs>().other);
}

/// From the smallest to the largest of some bounds; none where one is not a number (0·infinity).
ValueRange hull(std::initializer_list<double> bounds) {
  if (std::any_of(bounds.begin(), bounds.end(), [](double b) { return std::isnan(b); })) return {};
  return {std::min(bounds), std::max(bounds)};
}

/// 0 times an infinite bound is 0: the bound is not reached.
double times(double a, double b) { return a == 0 || b == 0 ? 0 : a * b; }

}  // namespace

ValueRange nonnegative(Operands, const Attrs&) { return {0, kInfinity}; }
ValueRange nonpositive(Operands, const Attrs&) { return {-kInfinity, 0}; }
ValueRange probability(Operands, const Attrs&) { return {0, 1}; }
ValueRange unit(Operands, const Attrs&) { return {-1, 1}; }
ValueRange same(Operands operands, const Attrs&) { return {operands[0]->low, operands[0]->high}; }

ValueRange with_zero(Operands operands, const Attrs&) {
  return {std::min(operands[0]->low, 0.0), std::max(operands[0]->high, 0.0)};
}

ValueRange same_sign(Operands operands, const Attrs&) {
  return {operands[0]->low >= 0 ? 0 : -kInfinity, operands[0]->high <= 0 ? 0 : kInfinity};
}

ValueRange positive_part(Operands operands, const Attrs&) {
  return {std::max(operands[0]->low, 0.0), std::max(operands[0]->high, 0.0)};
}

ValueRange negated(Operands operands, const Attrs&) {
  return {-operands[0]->high, -operands[0]->low};
}

ValueRange softmax(Operands, const Attrs&) { return {0, 1, true}; }

ValueRange sum(Operands operands, const Attrs& attrs) {
  const ValueRange other = second(operands, attrs);
  return hull({operands[0]->low + other.low, operands[0]->high + other.high});
}

ValueRange difference(Operands operands, const Attrs& attrs) {
  const ValueRange other = second(operands, attrs);
  return hull({operands[0]->low - other.high, operands[0]->high - other.low});
}

ValueRange product(Operands operands, const Attrs& attrs) {
  const ValueRange& a = *operands[0];
  const ValueRange b = second(operands, attrs);
  return hull(
      {times(a.low, b.low), times(a.low, b.high), times(a.high, b.low), times(a.high, b.high)});
}

ValueRange quotient(Operands operands, const Attrs& attrs) {
  const ValueRange b = second(operands, attrs);
  if (b.low < 0)
    return b.high < 0 ? same_sign(std::array{std::optional(negated(operands, {}))}, {})
                      : ValueRange{};
  return b.low == b.high && b.low > 0
             ? ValueRange{operands[0]->low / b.low, operands[0]->high / b.low}
             : same_sign(operands, {});
}

ValueRange maximum(Operands operands, const Attrs& attrs) {
  const ValueRange other = second(operands, attrs);
  return {std::max(operands[0]->low, other.low), std::max(operands[0]->high, other.high)};
}

ValueRange minimum(Operands operands, const Attrs& attrs) {
  const ValueRange other = second(operands, attrs);
  return {std::min(operands[0]->low, other.low), std::min(operands[0]->high, other.high)};
}

ValueRange filled(Operands operands, const Attrs& attrs) {
  const ValueRange value = number_range(attrs.as<FillAttrs>().value);
  return {std::min(operands[0]->low, value.low), std::max(operands[0]->high, value.high)};
}

}  // namespace tenon::ranges
