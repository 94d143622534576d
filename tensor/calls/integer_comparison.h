// Comparisons of integers with any number, in exact arithmetic: `ids < 0.5` asks for ids below 1.
#pragma once

#include <cstdint>
#include <optional>

#include "tensor/dtype.h"
#include "tensor/number.h"

namespace tenon::ops {

enum class Comparison : std::uint8_t { eq, ne, lt, le, gt, ge };

/// Says the same of every value of an integer dtype: what it is for all of them, or else the same
/// comparison with `bound`, a value of that dtype.
struct IntegerComparison {
  std::optional<bool> always;
  std::int64_t bound = 0;
};

/// `x op number` for x of an integer dtype or bool, which counts as 0 and 1.
IntegerComparison compare_integers(Comparison op, const Number& number, DType dtype);

}  // namespace tenon::ops
