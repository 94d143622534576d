// Element type conversion for inner loops: to and from the type that values are computed in,
// between any two element types, and of numbers that an op was given.
//
// Floats round to nearest even. A float becomes an integer by truncation, saturating at the
// integer's range; NaN becomes 0. An integer becomes a narrower one modulo its range. Anything but
// 0 is true.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "tensor/dtype.h"

namespace tenon::cpu {

template <class T>
inline constexpr bool is_16_bit_float = std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;

/// `value` as a float rounded to odd: rounding that once more to 16 bits gives the nearest value.
inline float round_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || value != value) return nearest;
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value)) --bits;
  return std::bit_cast<float>(bits | 1U);
}

/// `value` as a double, the bits that do not fit joined into the last one: no middle between two
/// 16-bit floats lies between the two, so rounding the double to those rounds once.
inline double sticky_double(std::int64_t value) {
  constexpr std::int64_t kExact = std::int64_t{1} << 53;
  if (value >= -kExact && value <= kExact) return static_cast<double>(value);
  return static_cast<double>((value & ~0x7ffLL) | ((value & 0x7ff) != 0 ? 0x400 : 0));
}

/// A float that rounds to 16 bits as `value` itself does: through the nearest float there would be two
/// roundings.
template <class C>
float before_narrowing(C value) {
  if constexpr (std::is_same_v<C, float>) {
    return value;
  } else if constexpr (std::is_same_v<C, std::int64_t>) {
    return round_to_odd(sticky_double(value));
  } else {
    return round_to_odd(static_cast<double>(value));
  }
}

template <class To, class From>
To float_to_integer(From value) {
  constexpr To kLowest = std::numeric_limits<To>::lowest();
  constexpr To kLargest = std::numeric_limits<To>::max();
  // Both bounds are exact in `From`, or the upper one rounds up to the power of two that is too
  // large.
  if (value >= static_cast<From>(kLargest)) return kLargest;
  if (value <= static_cast<From>(kLowest)) return kLowest;
  return value != value ? To(0) : static_cast<To>(value);
}

/// One element of type `From` as type `To`, by the rules above.
template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (is_16_bit_float<From>) {
    return convert<To>(static_cast<float>(value));
  } else if constexpr (is_16_bit_float<To>) {
    return To(before_narrowing(value));
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != From(0);
  } else if constexpr (std::is_integral_v<To> && std::is_floating_point_v<From>) {
    return float_to_integer<To>(value);
  } else {
    return static_cast<To>(value);
  }
}

/// `value` as an element of type `To`, saturating at an integer's range: for numbers that an op or a
/// factory was given.
template <class To>
To saturate(std::int64_t value) {
  if constexpr (std::is_integral_v<To> && !std::is_same_v<To, bool>) {
    constexpr std::int64_t kLowest = std::numeric_limits<To>::lowest();
    constexpr std::int64_t kLargest = std::numeric_limits<To>::max();
    return static_cast<To>(std::clamp(value, kLowest, kLargest));
  } else {
    return convert<To>(value);
  }
}

/// `n` contiguous float16 values to float and back.
void widen_halves(const Half* source, std::int64_t n, float* target);
void narrow_to_halves(const float* source, std::int64_t n, Half* target);

/// `n` elements from `source`, contiguous, to the type they are computed in.
template <class T>
void widen(const T* source, std::int64_t n, compute_type<T>* target) {
  if constexpr (std::is_same_v<T, Half>) {
    widen_halves(source, n, target);
  } else {
    for (std::int64_t i = 0; i < n; ++i) target[i] = static_cast<compute_type<T>>(source[i]);
  }
}

/// The inverse of widen.
template <class T>
void narrow(const compute_type<T>* source, std::int64_t n, T* target) {
  if constexpr (std::is_same_v<T, Half>) {
    narrow_to_halves(source, n, target);
  } else {
    for (std::int64_t i = 0; i < n; ++i) target[i] = T(source[i]);
  }
}

}  // namespace tenon::cpu
