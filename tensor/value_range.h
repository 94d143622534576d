// ValueRange: between which numbers the elements of a value are, whatever a model is given. Each op
// says what follows for its results; verification draws inputs of a part of a model by it.
#pragma once

#include <limits>
#include <optional>
#include <span>

namespace tenon {

class Attrs;

struct ValueRange {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  /// Elements along the op's axis add up to 1, as a softmax's do.
  bool sums_to_one = false;

  friend bool operator==(const ValueRange&, const ValueRange&) = default;
};

/// Rules for Op::range: the range of the first result from those of the operands; nothing for an
/// operand that is absent.
namespace ranges {

using Operands = std::span<const std::optional<ValueRange>>;

ValueRange nonnegative(Operands, const Attrs&);
ValueRange nonpositive(Operands, const Attrs&);
/// From 0 to 1.
ValueRange probability(Operands, const Attrs&);
/// From -1 to 1.
ValueRange unit(Operands, const Attrs&);
/// Operand 0's, and 0.
ValueRange with_zero(Operands operands, const Attrs&);
/// Operand 0's: means, maxima, selections.
ValueRange same(Operands operands, const Attrs&);
/// From 0 to ±infinity where operand 0 is on one side of 0: what a sum of it may be.
ValueRange same_sign(Operands operands, const Attrs&);
/// Operand 0's positive part.
ValueRange positive_part(Operands operands, const Attrs&);
ValueRange negated(Operands operands, const Attrs&);
/// From 0 to 1, adding up to 1 along the op's axis.
ValueRange softmax(Operands operands, const Attrs& attrs);
// Two operands, or one and the number of BinaryAttrs.
ValueRange sum(Operands operands, const Attrs& attrs);
ValueRange difference(Operands operands, const Attrs& attrs);
ValueRange product(Operands operands, const Attrs& attrs);
ValueRange quotient(Operands operands, const Attrs& attrs);
ValueRange maximum(Operands operands, const Attrs& attrs);
ValueRange minimum(Operands operands, const Attrs& attrs);
/// Operand 0's, and the number of FillAttrs.
ValueRange filled(Operands operands, const Attrs& attrs);

}  // namespace ranges
}  // namespace tenon
