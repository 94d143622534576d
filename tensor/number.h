// Number: what a program wrote as a number, with nothing lost: an int64 where it is one, else a
// double. It becomes an element of a dtype by one rounding.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

#include "tensor/dtype.h"

namespace tenon {

class Number {
 public:
  Number() = default;
  /// Exact, but for integers beyond int64: the nearest double.
  template <std::integral I>
  Number(I value) {
    integer_ = static_cast<std::int64_t>(value);
    if constexpr (std::is_unsigned_v<I> && sizeof(I) >= sizeof integer_) {
      if (integer_ < 0) set(static_cast<double>(value));
    }
  }
  /// A whole number in the range of int64 counts as an integer, but for -0.0.
  template <std::floating_point F>
  Number(F value) {
    set(static_cast<double>(value));
  }

  bool is_integer() const { return is_integer_; }
  /// Of an integer only.
  std::int64_t integer() const { return integer_; }
  /// The nearest double.
  double to_double() const { return is_integer_ ? static_cast<double>(integer_) : real_; }
  /// As an element of T's dtype: floats round once, to nearest even; integers truncate and saturate,
  /// NaN becomes 0; anything but 0 is true.
  template <Element T>
  T to() const;
  /// Whether T holds it: floats hold every number, rounded; integers and bool their own values only.
  template <Element T>
  bool is_value_of() const;

  /// "3", "0.5", "nan": reading it back gives the same number.
  std::string to_string() const;
  /// Equal, 0 and -0.0 apart; NaN is the same as NaN.
  bool same_as(const Number& other) const;

  /// Exact where both are integers and so is the result; else in double.
  friend Number operator+(const Number& a, const Number& b);
  friend Number operator-(const Number& a, const Number& b);
  friend Number operator*(const Number& a, const Number& b);
  friend Number operator/(const Number& a, const Number& b);
  friend Number pow(const Number& base, double exponent);

 private:
  void set(double value) {
    real_ = value;
    is_integer_ = false;
    if (!(value >= -0x1p63 && value < 0x1p63)) return;
    integer_ = static_cast<std::int64_t>(value);
    is_integer_ = static_cast<double>(integer_) == value && !(value == 0 && std::signbit(value));
  }
  std::int64_t integer_ = 0;
  double real_ = 0;
  bool is_integer_ = true;
};

/// Whether a number is a value of the dtype; see Number::is_value_of.
bool is_value_of(const Number& number, DType dtype);

}  // namespace tenon
