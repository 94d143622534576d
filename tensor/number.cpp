#include "tensor/number.h"

#include <fmt/format.h>

#include <limits>

#include "tensor/support/convert.h"

namespace tenon {

template <Element T>
T Number::to() const {
  return is_integer_ ? cpu::saturate<T>(integer_) : cpu::convert<T>(real_);
}

template <Element T>
bool Number::is_value_of() const {
  if constexpr (std::is_integral_v<T>) {
    if (!is_integer_) return real_ == 0;  // -0.0
    return integer_ >= static_cast<std::int64_t>(std::numeric_limits<T>::lowest()) &&
           integer_ <= static_cast<std::int64_t>(std::numeric_limits<T>::max());
  } else {
    return true;
  }
}

bool is_value_of(const Number& number, DType dtype) {
  return dispatch_all(dtype, [&]<class T>() { return number.is_value_of<T>(); });
}

template float Number::to() const;
template double Number::to() const;
template Half Number::to() const;
template BFloat16 Number::to() const;
template std::int64_t Number::to() const;
template std::int32_t Number::to() const;
template std::int16_t Number::to() const;
template std::int8_t Number::to() const;
template std::uint8_t Number::to() const;
template bool Number::to() const;
template bool Number::is_value_of<float>() const;
template bool Number::is_value_of<double>() const;
template bool Number::is_value_of<Half>() const;
template bool Number::is_value_of<BFloat16>() const;
template bool Number::is_value_of<std::int64_t>() const;
template bool Number::is_value_of<std::int32_t>() const;
template bool Number::is_value_of<std::int16_t>() const;
template bool Number::is_value_of<std::int8_t>() const;
template bool Number::is_value_of<std::uint8_t>() const;
template bool Number::is_value_of<bool>() const;

std::string Number::to_string() const {
  return is_integer_ ? fmt::format("{}", integer_) : fmt::format("{}", real_);
}

bool Number::same_as(const Number& other) const {
  if (is_integer_ != other.is_integer_) return false;
  if (is_integer_) return integer_ == other.integer_;
  return real_ == other.real_ || (std::isnan(real_) && std::isnan(other.real_));
}

Number operator+(const Number& a, const Number& b) {
  std::int64_t sum = 0;
  const bool exact =
      a.is_integer_ && b.is_integer_ && !__builtin_add_overflow(a.integer_, b.integer_, &sum);
  return exact ? Number(sum) : Number(a.to_double() + b.to_double());
}

Number operator-(const Number& a, const Number& b) {
  std::int64_t difference = 0;
  const bool exact = a.is_integer_ && b.is_integer_ &&
                     !__builtin_sub_overflow(a.integer_, b.integer_, &difference);
  return exact ? Number(difference) : Number(a.to_double() - b.to_double());
}

Number operator*(const Number& a, const Number& b) {
  std::int64_t product = 0;
  const bool exact =
      a.is_integer_ && b.is_integer_ && !__builtin_mul_overflow(a.integer_, b.integer_, &product);
  return exact ? Number(product) : Number(a.to_double() * b.to_double());
}

Number operator/(const Number& a, const Number& b) {
  if (b.is_integer_ && b.integer_ == -1) return b * a;  // which may overflow
  const bool exact =
      a.is_integer_ && b.is_integer_ && b.integer_ != 0 && a.integer_ % b.integer_ == 0;
  return exact ? Number(a.integer_ / b.integer_) : Number(a.to_double() / b.to_double());
}

Number pow(const Number& base, double exponent) {
  if (exponent == 1) return base;
  if (exponent == 2) return base * base;
  const double x = base.to_double();
  if (exponent == 0.5) return std::sqrt(x);
  if (exponent == -0.5) return 1.0 / std::sqrt(x);
  return std::pow(x, exponent);
}

}  // namespace tenon
