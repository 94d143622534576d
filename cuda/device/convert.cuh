// Element types in device code: to and from the type that values are computed in, and casts. The
// rules are those of the CPU: floats round once, to nearest even; a float becomes an integer by
// truncation, saturating at its range, and NaN becomes 0; integers wrap; anything but 0 is true.
//
// The instructions are written out: cuda_fp16.h and cuda_bf16.h take half a second to parse.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "tensor/dtype.h"

namespace tenon::cuda {

__device__ __forceinline__ float widen(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
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

/// To bfloat16, which compute capability 8.0 has an instruction for.
__device__ __forceinline__ std::uint16_t bfloat16_bits(float value) {
#if __CUDA_ARCH__ >= 800
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const unsigned word = __float_as_uint(value);
  if (value != value) return 0x7fff;
  return static_cast<std::uint16_t>((word + 0x7fffU + ((word >> 16) & 1U)) >> 16);
#endif
}

/// A double by way of a float whose last bit says that something was cut off: it rounds once.
__device__ __forceinline__ std::uint16_t bfloat16_bits(double value) {
#if __CUDA_ARCH__ >= 900
  std::uint16_t bits;
  asm("cvt.rn.bf16.f64 %0, %1;" : "=h"(bits) : "d"(value));
  return bits;
#else
  const float cut = __double2float_rz(value);
  const bool exact = static_cast<double>(cut) == value || value != value;
  return bfloat16_bits(__uint_as_float(__float_as_uint(cut) | (exact ? 0U : 1U)));
#endif
}

/// A float or double as a 16-bit float, rounded once.
template <class T, class C>
__device__ __forceinline__ T round_to_16_bits(C value) {
  static_assert(std::is_same_v<C, float> || std::is_same_v<C, double>);
  T result;
  if constexpr (std::is_same_v<T, BFloat16>) {
    result.bits = bfloat16_bits(value);
  } else if constexpr (std::is_same_v<C, double>) {
    asm("cvt.rn.f16.f64 %0, %1;" : "=h"(result.bits) : "d"(value));
  } else {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  }
  return result;
}

/// As a double, the bits that do not fit joined into the last one (see tensor/support/convert.h), so that
/// rounding it to 16 bits rounds once.
__device__ __forceinline__ double sticky_double(std::int64_t value) {
  constexpr std::int64_t kExact = std::int64_t{1} << 53;
  if (value >= -kExact && value <= kExact) return static_cast<double>(value);
  return static_cast<double>((value & ~0x7ffLL) | ((value & 0x7ff) != 0 ? 0x400 : 0));
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
    } else if constexpr (std::is_same_v<From, std::int64_t>) {
      return round_to_16_bits<To>(sticky_double(value));
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
