// From random words to random numbers, for host and device code: the same bits on both. Everything
// is computed in double, and each product that a sum follows is an fma, so that nothing is left to
// contract; sqrt and division are correctly rounded everywhere. Which words an element has is
// philox.h's.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "tensor/dtype.h"
#include "tensor/philox.h"

namespace tenon::random_values {

TENON_HOST_DEVICE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

/// c0 + x·(c1 + x·(…)).
TENON_HOST_DEVICE double polynomial(double, double last) { return last; }
template <class... Rest>
TENON_HOST_DEVICE double polynomial(double x, double first, Rest... rest) {
  return multiply_add(x, polynomial(x, rest...), first);
}

template <class To, class From>
TENON_HOST_DEVICE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(static_cast<void*>(&result), &value, sizeof(To));
  return result;
}

/// An integer below 2^52 as a double, without a conversion that processors lack for vectors.
TENON_HOST_DEVICE double small_integer(std::uint64_t value) {
  return bits_as<double>(value | 0x4330000000000000U) - 0x1p52;
}

/// Where 32 bits lie in (0, 1): in the middle of the 2^-32 wide part that they name.
TENON_HOST_DEVICE double unit_interval(std::uint32_t bits) {
  return (small_integer(bits) + 0.5) * 0x1p-32;
}
/// Where 53 bits lie in [0, 1): the same part, divided further.
TENON_HOST_DEVICE double unit_interval(std::uint32_t first, std::uint32_t second) {
  return multiply_add(small_integer(first), 0x1p-32, small_integer(second >> 11) * 0x1p-53);
}

/// The natural logarithm of a normal number u > 0: u = 2^k·m with m in [√½, √2), and log m =
/// 2·atanh((m - 1)/(m + 1)) by its Taylor series. Relative error below 2^-50.
TENON_HOST_DEVICE double log_of(double u) {
  constexpr std::uint64_t kRootHalf = 0x3fe6a09e667f3bcdU;
  constexpr std::uint64_t kBias = 1024;
  const auto bits = bits_as<std::uint64_t>(u);
  const std::uint64_t biased = (bits - kRootHalf + (kBias << 52)) >> 52;
  const double k = small_integer(biased) - static_cast<double>(kBias);
  const auto m = bits_as<double>(bits - ((biased - kBias) << 52));
  const double s = (m - 1) / (m + 1);
  const double z = s * s;
  const double series = polynomial(z, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13,
                                   1.0 / 15, 1.0 / 17, 1.0 / 19);
  const double twice = s + s;
  constexpr double kLog2 = 0x1.62e42fefa39efp-1;
  constexpr double kLog2Rest = 0x1.abc9e3b39803fp-56;  // log 2 - kLog2
  return multiply_add(k, kLog2, twice + multiply_add(k, kLog2Rest, twice * z * series));
}

struct Pair {
  double first;
  double second;
};

/// cos(2πt) and sin(2πt) for t in [0, 1]: a quarter turn's multiple and Taylor's series on ±π/4.
TENON_HOST_DEVICE Pair circle(double t) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const double shifted = multiply_add(t, 4.0, kRound);
  const auto quarters = bits_as<std::uint64_t>(shifted);
  const double x = multiply_add(shifted - kRound, -0.25, t) * 0x1.921fb54442d18p+2;
  const double z = x * x;
  const double sine =
      multiply_add(x * z,
                   polynomial(z, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800,
                              1.0 / 6227020800, -1.0 / 1307674368000),
                   x);
  const double cosine =
      multiply_add(z,
                   polynomial(z, -1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800,
                              1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000),
                   1.0);
  // A quarter turn takes (c, s) to (-s, c).
  const bool odd = (quarters & 1U) != 0;
  const auto first = bits_as<std::uint64_t>(odd ? sine : cosine);
  const auto second = bits_as<std::uint64_t>(odd ? cosine : sine);
  return {bits_as<double>(first ^ (((quarters + 1) & 2U) << 62)),
          bits_as<double>(second ^ ((quarters & 2U) << 62))};
}

/// Two independent standard normal numbers from two uniform ones, u in (0, 1] and t in [0, 1]: the
/// transform of G. E. P. Box and M. E. Muller, "A Note on the Generation of Random Normal
/// Deviates", 1958.
TENON_HOST_DEVICE Pair normal_pair(double u, double t) {
  const double radius = ::sqrt(-2.0 * log_of(u));
  const Pair direction = circle(t);
  return {radius * direction.first, radius * direction.second};
}

/// The real interval [low, low + span), in units of `unit`, and the numbers of a dtype that are its
/// ends: results are never outside of them.
struct UniformRange {
  double low = 0;
  double span = 1;
  double unit = 1;  // 2 where the span would overflow
  double least = 0;
  double largest = 1;
};

/// The number at u in [0, 1) of the interval; to be rounded down to the dtype.
TENON_HOST_DEVICE double uniform_value(const UniformRange& range, double u) {
  const double value = multiply_add(range.span, u, range.low) * range.unit;
  const double raised = value < range.least ? range.least : value;
  return raised > range.largest ? range.largest : raised;
}

/// The bits of a number with those of negative ones reflected, so that they are ordered as the
/// numbers are; its own inverse.
template <class Bits>
TENON_HOST_DEVICE Bits reflected(Bits bits) {
  constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(-1) >> 1);
  return static_cast<Bits>(bits ^ (bits > kMagnitude ? kMagnitude : Bits{0}));
}

/// The number of T, float or 16 bits wide, before `value` where `down`; -0 is the one before +0.
template <class T>
TENON_HOST_DEVICE T lowered(T value, bool down) {
  using Bits = std::conditional_t<sizeof(T) == 2, std::uint16_t, std::uint32_t>;
  const auto place = static_cast<Bits>(reflected(bits_as<Bits>(value)) - (down ? 1U : 0U));
  return bits_as<T>(reflected(place));
}

/// The largest float that is not above `value`, a number within float's range.
TENON_HOST_DEVICE float float_below(double value) {
  const auto nearest = static_cast<float>(value);
  return lowered(nearest, static_cast<double>(nearest) > value);
}

/// An integer of [low, low + range) from 64 random bits: the upper half of bits·range, as of D.
/// Lemire, "Fast Random Integer Generation in an Interval", 2019, without its rejection: off by
/// 2^-64·range.
TENON_HOST_DEVICE std::int64_t integer_value(std::int64_t low, std::uint64_t range,
                                             std::uint32_t first, std::uint32_t second) {
  const std::uint64_t bits = std::uint64_t{first} << 32 | second;
#if defined(__CUDA_ARCH__)
  const std::uint64_t upper = __umul64hi(bits, range);
#else
  __extension__ using Wide = unsigned __int128;
  const auto upper = static_cast<std::uint64_t>((Wide{bits} * range) >> 64);
#endif
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + upper);
}

}  // namespace tenon::random_values
