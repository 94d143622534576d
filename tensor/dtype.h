// Element types: float32, float64, float16, bfloat16, int64, int32, int16, int8, uint8, bool, their
// host value types, and dispatch from a run-time DType to a compile-time type by lambda.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

namespace tenon {

enum class DType : std::uint8_t {
  float32,
  float64,
  float16,
  bfloat16,
  int64,
  int32,
  int16,
  int8,
  uint8,
  boolean
};

inline constexpr int kNumDTypes = 10;

/// Bytes of one element.
std::size_t size_of(DType dtype);
/// "float32", "bool", …: PyTorch's names.
std::string_view name(DType dtype);
/// The inverse of name(); throws DTypeError for an unknown name.
DType parse_dtype(std::string_view text);
/// float32, float64, float16 or bfloat16.
bool is_floating(DType dtype);
/// int16 or int8: stored, moved, compared, cast and used as indices, but not computed with.
constexpr bool is_storage_only(DType dtype) {
  return dtype == DType::int16 || dtype == DType::int8;
}
/// The type that sums, statistics and products of `dtype` are accumulated in.
DType accumulation_dtype(DType dtype);
/// Unit roundoff 2^-p of a floating type (float32: 2^-24), 0 for the others.
double unit_roundoff(DType dtype);

/// IEEE 754 binary16 as stored; arithmetic is done in float.
struct Half {
  std::uint16_t bits = 0;
  Half() = default;
  explicit Half(float value);
  explicit operator float() const;
  friend bool operator==(Half a, Half b) { return float(a) == float(b); }
};

/// The upper half of an IEEE 754 binary32, rounded to nearest even; arithmetic is done in float.
struct BFloat16 {
  std::uint16_t bits = 0;
  BFloat16() = default;
  explicit BFloat16(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const bool nan = (word & 0x7fffffffU) > 0x7f800000U;
    bits = nan ? static_cast<std::uint16_t>((word >> 16) | 0x40U)
               : static_cast<std::uint16_t>((word + 0x7fffU + ((word >> 16) & 1U)) >> 16);
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  friend bool operator==(BFloat16 a, BFloat16 b) { return float(a) == float(b); }
};

inline Half::Half(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((word >> 16) & 0x8000U);
  const std::uint32_t magnitude = word & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    bits = static_cast<std::uint16_t>(sign | 0x7e00U);
  } else if (magnitude >= 0x477ff000U) {  // rounds to 65536 or more
    bits = static_cast<std::uint16_t>(sign | 0x7c00U);
  } else if (magnitude < 0x38800000U) {  // subnormal: the addition rounds to a multiple of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    bits = static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U));
  } else {
    const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U) - (112U << 23);
    bits = static_cast<std::uint16_t>(sign | (rounded >> 13));
  }
}

inline Half::operator float() const {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t magnitude = bits & 0x7fffU;
  if (magnitude >= 0x7c00U) {
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  }
  if (magnitude < 0x400U) {  // subnormal: an exact multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112U << 23)));
}

/// The DType of a host type.
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::float32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::float64;
};
template <>
struct DTypeOf<Half> {
  static constexpr DType value = DType::float16;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bfloat16;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::int64;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::int32;
};
template <>
struct DTypeOf<std::int16_t> {
  static constexpr DType value = DType::int16;
};
template <>
struct DTypeOf<std::int8_t> {
  static constexpr DType value = DType::int8;
};
template <>
struct DTypeOf<std::uint8_t> {
  static constexpr DType value = DType::uint8;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType value = DType::boolean;
};
/// A host type that is the element of a dtype.
template <class T>
concept Element = requires { DTypeOf<T>::value; };
template <Element T>
inline constexpr DType dtype_of = DTypeOf<T>::value;

/// The type that values of T are computed and accumulated in: float for 16-bit floats, int32 for
/// int16 and int8, else T.
template <class T>
struct ComputeType {
  using type = T;
};
template <>
struct ComputeType<Half> {
  using type = float;
};
template <>
struct ComputeType<BFloat16> {
  using type = float;
};
template <>
struct ComputeType<std::int16_t> {
  using type = std::int32_t;
};
template <>
struct ComputeType<std::int8_t> {
  using type = std::int32_t;
};
template <class T>
using compute_type = typename ComputeType<T>::type;

[[noreturn]] void throw_unsupported_dtype(DType dtype, std::string_view allowed);

/// Calls `f.template operator()<T>()` with the host type of a floating dtype; else DTypeError.
template <class F>
decltype(auto) dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32: return f.template operator()<float>();
    case DType::float64: return f.template operator()<double>();
    case DType::float16: return f.template operator()<Half>();
    case DType::bfloat16: return f.template operator()<BFloat16>();
    default: throw_unsupported_dtype(dtype, "a floating-point dtype");
  }
}

/// Calls `f.template operator()<T>()` with the host type of any dtype that ops compute with.
template <class F>
decltype(auto) dispatch_computed(DType dtype, F&& f) {
  switch (dtype) {
    case DType::int64: return f.template operator()<std::int64_t>();
    case DType::int32: return f.template operator()<std::int32_t>();
    case DType::uint8: return f.template operator()<std::uint8_t>();
    case DType::boolean: return f.template operator()<bool>();
    default: return dispatch_float(dtype, std::forward<F>(f));
  }
}

/// Calls `f.template operator()<T>()` with the host type of any dtype.
template <class F>
decltype(auto) dispatch_all(DType dtype, F&& f) {
  switch (dtype) {
    case DType::int16: return f.template operator()<std::int16_t>();
    case DType::int8: return f.template operator()<std::int8_t>();
    default: return dispatch_computed(dtype, std::forward<F>(f));
  }
}

}  // namespace tenon
