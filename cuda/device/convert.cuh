// Element types in device code: to and from the type that values are computed in, and casts. The
// rules are those of the CPU: floats round once, to nearest even; a float becomes an integer by
// truncation, saturating at its range, and NaN becomes 0; integers wrap; anything but 0 is true.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "tensor/dtype.h"

namespace tenon::cuda {

__device__ __forceinline__ float widen(Half value) {
  return __half2float(__ushort_as_half(value.bits));
}
__device__ __forceinline__ float widen(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
template <class T>
__device__ __forceinline__ T widen(T value) {
  return value;
}

template <class T>
inline constexpr bool is_16_bit_float = std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;

/// A float or double as a 16-bit float, rounded once.
template <class T, class C>
__device__ __forceinline__ T round_to_16_bits(C value) {
  T result;
  if constexpr (std::is_same_v<T, Half>) {
    if constexpr (std::is_same_v<C, double>) {
      result.bits = __half_as_ushort(__double2half(value));
    } else {
      result.bits = __half_as_ushort(__float2half_rn(value));
    }
  } else if constexpr (std::is_same_v<C, double>) {
    result.bits = __bfloat16_as_ushort(__double2bfloat16(value));
  } else {
    result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
  return result;
}

template <class To, class From>
__device__ __forceinline__ To float_to_integer(From value) {
  constexpr To kLowest = std::numeric_limits<To>::lowest();
  constexpr To kLargest = std::numeric_limits<To>::max();
  if (value >= static_cast<From>(kLargest)) return kLargest;
  if (value <= static_cast<From>(kLowest)) return kLowest;
  return value != value ? To(0) : static_cast<To>(value);
}

/// One element of type `From` as type `To`.
template <class To, class From>
__device__ __forceinline__ To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (is_16_bit_float<From>) {
    return convert<To>(widen(value));
  } else if constexpr (is_16_bit_float<To>) {
    if constexpr (std::is_same_v<From, float>) {
      return round_to_16_bits<To>(value);
    } else {
      return round_to_16_bits<To>(static_cast<double>(value));
    }
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != From(0);
  } else if constexpr (std::is_integral_v<To> && std::is_floating_point_v<From>) {
    return float_to_integer<To>(value);
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace tenon::cuda
