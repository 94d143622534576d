// Elementary functions for kernels' inner loops. The float versions are branch-free, so that the
// compiler vectorizes a loop that calls them; the double versions are the C library's. Relative
// error of the float versions: below 4e-7 where the result is a normal number. NaN and Inf
// propagate.
//
// The polynomials are Chebyshev interpolants on the intervals named beside them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace tenon::cpu {

/// c0 + x·(c1 + x·(…)).
template <class T>
constexpr T polynomial(T, T last) {
  return last;
}
template <class T, class... Rest>
constexpr T polynomial(T x, T first, Rest... rest) {
  return first + x * polynomial(x, rest...);
}

/// `condition ? a : b` on the bits: the compiler makes no branch of it, and so vectorizes.
template <class T>
T select(bool condition, T a, T b) {
  if constexpr (sizeof(T) == 4 || sizeof(T) == 8) {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    const Bits mask = Bits(0) - static_cast<Bits>(condition);
    return std::bit_cast<T>((std::bit_cast<Bits>(a) & mask) | (std::bit_cast<Bits>(b) & ~mask));
  } else {
    return condition ? a : b;
  }
}

/// e^(high + low), |low| far below |high|: the low part is what `high` lost to rounding.
inline float exp_of_sum(float high, float low) {
  // Beyond these bounds the result is 0 or inf anyway; a NaN passes both comparisons.
  float x = select(high < -104.0F, -104.0F, high);
  x = select(x > 89.0F, 89.0F, x);
  constexpr float kRound =
      12582912.0F;  // adding 1.5·2^23 leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375F) - n * -2.12194440e-4F + low;  // |r| <= ln(2)/2
  const float tail = polynomial(r, 0.5000000013F, 0.1666666668F, 0.04166646471F, 0.008333310902F,
                                0.001393367373F, 0.0001989101718F);
  const float value = 1.0F + (r + r * r * tail);
  // 2^n in two factors: one alone would overflow where the result is subnormal or near the largest.
  const auto k = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const auto half = k >> 1;
  const auto power = [](std::int32_t exponent) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
  };
  return value * power(half) * power(k - half);
}

inline float exp(float x) { return exp_of_sum(x, 0.0F); }
inline double exp(double x) { return std::exp(x); }

/// erf on [-1, 1].
inline float erf_near_zero(float x) {
  return x * polynomial(x * x, 1.128379166F, -0.3761262667F, 0.1128359472F, -0.02685421201F,
                        0.005189087423F, -0.0008016864287F, 7.875875063e-5F);
}

/// e^(z²)·erfc(z) on [1, 14.2]: t·P(t) with t = 1/(1 + z/2).
inline float scaled_erfc(float z) {
  const float t = 1.0F / (1.0F + 0.5F * z);
  return t * polynomial(t, 0.2820938943F, 0.2821344853F, 0.246145868F, 0.182533593F, 0.05107462362F,
                        0.09765049236F, -0.2387470799F, 0.09775644606F);
}

/// e^(-c·x²) for a c that is a power of two.
inline float exp_of_square(float x, float c) {
  // The square of the upper half of x's bits is exact; the rest of x² goes in as a correction.
  const float upper = std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xfffff000U);
  return exp_of_sum(-c * upper * upper, c * ((upper - x) * (upper + x)));
}

inline float erf(float x) {
  const float magnitude = std::fabs(x);
  const float near_zero = erf_near_zero(x);
  const float z = select(magnitude > 14.0F, 14.0F, magnitude);
  const float far = std::copysign(1.0F - exp_of_square(z, 1.0F) * scaled_erfc(z), x);
  return select(magnitude < 1.0F, near_zero, far);
}
inline double erf(double x) { return std::erf(x); }

/// The normal distribution at x: Φ(x) = erfc(-x/√2)/2, accurate in both tails, and e^(-x²/2)/√(2π).
template <class T>
struct Normal {
  T cdf;
  T density;
};
inline Normal<float> normal(float x) {
  constexpr float kRootHalf = 0.707106781F;
  const float magnitude = std::fabs(x);
  const float bounded = select(magnitude > 20.0F, 20.0F, magnitude);
  const float bell = exp_of_square(bounded, 0.5F);
  const float center = 0.5F + 0.5F * erf_near_zero(x * kRootHalf);
  const float tail = 0.5F * bell * scaled_erfc(bounded * kRootHalf);
  const float far = select(x < 0.0F, tail, 1.0F - tail);
  return {select(magnitude < 1.414F, center, far), 0.398942280F * bell};
}
inline Normal<double> normal(double x) {
  return {0.5 * std::erfc(-x * 0.70710678118654752440),
          0.39894228040143267794 * std::exp(-0.5 * x * x)};
}
template <class T>
T normal_cdf(T x) {
  return normal(x).cdf;
}

inline float tanh(float x) {
  const float magnitude = std::fabs(x);
  const float z = x * x;
  const float near_zero =
      x + x * z *
              polynomial(z, -0.3333333315F, 0.1333330015F, -0.05395846163F, 0.02176250291F,
                         -0.008323187058F, 0.002269501684F);  // |x| <= 0.632
  const float far = std::copysign(1.0F - 2.0F / (exp(2.0F * magnitude) + 1.0F), x);
  return select(magnitude < 0.625F, near_zero, far);
}
inline double tanh(double x) { return std::tanh(x); }

/// log(1 + e^x) = max(x, 0) + log(1 + t) with t = e^-|x|; and log(1 + t) = 2·atanh(t/(2 + t)), whose
/// series in s = t/(2 + t) <= 1/3 has these coefficients 1/(2k + 1).
inline float log1p_exp(float x) {
  const float t = exp(-std::fabs(x));
  const float s = t / (2.0F + t);
  const float series =
      polynomial(s * s, 1.0F, 1.0F / 3, 1.0F / 5, 1.0F / 7, 1.0F / 9, 1.0F / 11, 1.0F / 13);
  return select(x > 0.0F, x, 0.0F) + 2.0F * s * series;
}
inline double log1p_exp(double x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::fabs(x))); }

/// 1/(1 + e^-x).
template <class T>
T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

}  // namespace tenon::cpu
