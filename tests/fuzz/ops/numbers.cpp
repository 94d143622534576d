#include "tests/fuzz/ops/numbers.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <string_view>
#include <utility>

namespace tenon::op_fuzz {
namespace {

/// By name, so that dtypes which are added to Tenon are covered as soon as they are there.
constexpr std::pair<std::string_view, Format> kFormats[] = {
    {"float32", {true, 24, -126, 127, 0, false}}, {"float64", {true, 53, -1022, 1023, 0, false}},
    {"float16", {true, 11, -14, 15, 0, false}},   {"bfloat16", {true, 8, -126, 127, 0, false}},
    {"int64", {false, 0, 0, 0, 64, true}},        {"int32", {false, 0, 0, 0, 32, true}},
    {"int16", {false, 0, 0, 0, 16, true}},        {"int8", {false, 0, 0, 0, 8, true}},
    {"uint8", {false, 0, 0, 0, 8, false}},        {"bool", {false, 0, 0, 0, 1, false}},
};

std::array<Format, kNumDTypes> formats_by_dtype() {
  std::array<Format, kNumDTypes> result{};
  for (int i = 0; i < kNumDTypes; ++i) {
    for (const auto& [known, format] : kFormats) {
      if (known == name(static_cast<DType>(i))) result[static_cast<std::size_t>(i)] = format;
    }
  }
  return result;
}

}  // namespace

const Format& format_of(DType dtype) {
  static const std::array<Format, kNumDTypes> formats = formats_by_dtype();
  return formats[static_cast<std::size_t>(dtype)];
}

bool is_float(DType dtype) { return format_of(dtype).floating; }

bool computes(DType dtype) {
  const Format& format = format_of(dtype);
  return format.floating || format.bits >= 32 || !format.is_signed;
}

Number largest(DType dtype) {
  const Format& format = format_of(dtype);
  if (!format.floating) return std::ldexp(Number(1), format.bits - format.is_signed) - 1;
  return std::ldexp(2 - std::ldexp(Number(1), 1 - format.digits), format.max_exponent);
}

Number lowest(DType dtype) {
  const Format& format = format_of(dtype);
  if (format.floating) return -largest(dtype);
  return format.is_signed ? -std::ldexp(Number(1), format.bits - 1) : 0;
}

Number smallest_normal(DType dtype) { return std::ldexp(Number(1), format_of(dtype).min_exponent); }

Number smallest_subnormal(DType dtype) {
  return std::ldexp(Number(1), format_of(dtype).min_exponent - format_of(dtype).digits + 1);
}

Number roundoff(DType dtype) { return std::ldexp(Number(1), -format_of(dtype).digits); }

Number ulp(DType dtype, Number value) {
  if (value == 0 || !std::isfinite(value)) return smallest_subnormal(dtype);
  const int exponent = std::max(std::ilogb(value), format_of(dtype).min_exponent);
  return std::ldexp(Number(1), exponent - format_of(dtype).digits + 1);
}

DType wide(DType dtype) {
  if (!is_float(dtype)) return DType::int64;
  return dtype == DType::float64 ? dtype : DType::float32;
}

Number round_to(DType dtype, Number exact) {
  if (!std::isfinite(exact) || exact == 0) return exact;
  const Number step = ulp(dtype, exact);
  // Scaling by a power of two is exact, and nearbyint takes ties to even.
  const Number rounded = std::nearbyint(exact / step) * step;
  if (std::fabs(rounded) > largest(dtype)) return std::copysign(kInfinity, exact);
  return std::copysign(rounded, exact);
}

Number from_real(DType dtype, Number value) {
  const Format& format = format_of(dtype);
  if (format.floating) return round_to(dtype, value);
  if (format.bits == 1) return value != 0;
  if (std::isnan(value)) return 0;
  if (value >= largest(dtype)) return largest(dtype);
  if (value <= lowest(dtype)) return lowest(dtype);
  return std::trunc(value) + 0;  // no negative zero
}

Number wrap(DType dtype, std::int64_t value) {
  const Format& format = format_of(dtype);
  if (format.bits == 1) return value != 0;
  if (format.bits == 64) return value;
  const std::uint64_t kept = static_cast<std::uint64_t>(value) & ((1ULL << format.bits) - 1);
  const bool negative = format.is_signed && ((kept >> (format.bits - 1)) & 1U) != 0;
  const Number magnitude = static_cast<Number>(kept);
  return negative ? magnitude - std::ldexp(Number(1), format.bits) : magnitude;
}

Number convert(Number value, DType from, DType to) {
  if (is_float(from) || is_float(to)) return from_real(to, value);
  return wrap(to, as_integer(value));
}

std::int64_t as_integer(Number value) { return static_cast<std::int64_t>(value); }

bool same(Number a, Number b, bool signed_zero) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b && (!signed_zero || std::signbit(a) == std::signbit(b));
}

std::string to_text(Number value) {
  if (std::isnan(value)) return "NAN";
  if (std::isinf(value)) return value > 0 ? "INFINITY" : "-INFINITY";
  if (value == std::trunc(value) && std::fabs(value) < 0x1p63L) {
    return value == 0 && std::signbit(value) ? "-0.0" : fmt::format("{}", as_integer(value));
  }
  const auto real = static_cast<double>(value);
  const std::string decimal = fmt::format("{}", real);
  return decimal.size() <= 8 ? decimal : fmt::format("{:a}", real);
}

}  // namespace tenon::op_fuzz
