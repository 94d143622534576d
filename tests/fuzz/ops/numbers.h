// Numbers as the reference interpreter of fuzz_ops computes with them: long double, which holds
// every value of every dtype exactly, rounded to a dtype by code of its own.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "tensor/dtype.h"

namespace tenon::op_fuzz {

using Number = long double;
static_assert(std::numeric_limits<Number>::digits >= 64, "int64 and double must be exact");

inline constexpr Number kInfinity = std::numeric_limits<Number>::infinity();
inline constexpr Number kNaN = std::numeric_limits<Number>::quiet_NaN();

/// What values a dtype has.
struct Format {
  bool floating = false;
  int digits = 0;        // floats: bits of the significand, the leading one included
  int min_exponent = 0;  // floats: the smallest normal number is 2^min_exponent
  int max_exponent = 0;  // floats: the largest is (2 - 2^(1-digits))·2^max_exponent
  int bits = 0;          // integers; 1 for bool
  bool is_signed = false;
};
const Format& format_of(DType dtype);
/// Of floats and integers.
Number largest(DType dtype);
Number lowest(DType dtype);
Number smallest_normal(DType dtype);
Number smallest_subnormal(DType dtype);
/// 2^-digits: the largest relative error of one rounding.
Number roundoff(DType dtype);
/// The distance of neighbouring values around `value`.
Number ulp(DType dtype, Number value);
/// What sums of this dtype are taken in.
DType wide(DType dtype);
/// float32, float64, float16 or bfloat16.
bool is_float(DType dtype);
/// Takes part in arithmetic: not int8 and int16, which are for storage.
bool computes(DType dtype);

/// To the nearest value of a floating dtype, ties to even, Inf beyond the largest.
Number round_to(DType dtype, Number exact);
/// A number that no dtype holds yet (a factory's, say): rounded once, or truncated and saturated;
/// NaN becomes 0, and all but 0 is true.
Number from_real(DType dtype, Number value);
/// An integer modulo the dtype's range: bool is true for all but 0.
Number wrap(DType dtype, std::int64_t value);
/// A value of one dtype as one of another: from_real, but integers wrap around.
Number convert(Number value, DType from, DType to);
/// The integer that an exact value is.
std::int64_t as_integer(Number value);
/// The same number, or both NaN; zeros must have the same sign where `signed_zero`.
bool same(Number a, Number b, bool signed_zero = true);
/// So that it reads back exactly: "0x1.8p+1" for what decimals would be long for.
std::string to_text(Number value);

}  // namespace tenon::op_fuzz
