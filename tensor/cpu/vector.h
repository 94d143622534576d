// Vectors of 32 bytes for the CPU kernels, and their exponential. They are the compiler's vector
// extension, so the same source serves AVX2, SSE and NEON. Only sources in tensor/cpu include this.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // every function here is inlined: no ABI is involved
#endif

namespace tenon::cpu {

namespace detail {
template <class T>
struct VectorTypes;
template <>
struct VectorTypes<float> {
  typedef float Values __attribute__((vector_size(32)));
  typedef std::int32_t Integers __attribute__((vector_size(32)));
};
template <>
struct VectorTypes<double> {
  typedef double Values __attribute__((vector_size(32)));
  typedef std::int64_t Integers __attribute__((vector_size(32)));
};
}  // namespace detail

template <class T>
using Vec = typename detail::VectorTypes<T>::Values;
/// Signed integers of T's size: bit patterns and comparison results.
template <class T>
using IntVec = typename detail::VectorTypes<T>::Integers;
template <class T>
inline constexpr int kLanes = 32 / static_cast<int>(sizeof(T));

/// `n` rounded up to whole vectors of T.
template <class T>
constexpr std::int64_t padded(std::int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T>
inline Vec<T> load(const T* source) {
  Vec<T> result;
  std::memcpy(&result, source, sizeof result);
  return result;
}

template <class T>
inline void store(T* target, Vec<T> value) {
  std::memcpy(target, &value, sizeof value);
}

template <class T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // subtracting zero is exact, so this compiles to the bare broadcast
}

/// The larger of each pair; a NaN in `value` is passed over.
template <class T>
inline Vec<T> max_ignoring_nan(Vec<T> value, Vec<T> current) {
  return value > current ? value : current;
}

/// Lanes added pairwise, always in the same order.
template <class T>
inline T horizontal_sum(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <class T>
inline T horizontal_max(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  T result = lanes[0];
  for (int i = 1; i < kLanes<T>; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
}

namespace detail {

/// exp(x) = 2^n · exp(r), |r| <= ln2/2, n by rounding with `kRound`; exp(r) by its Taylor series,
/// whose first left-out term is below half an ulp.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kRound = 0x1.8p23F;
  static constexpr float kLowest = -87.336545F;  // ln of the smallest normal number
  static constexpr float kLn2High = 0.693359375F;
  static constexpr float kLn2Low = -2.12194440e-4F;
  static constexpr int kDegree = 7;
  static constexpr int kMantissaBits = 23;
};
template <>
struct ExpConstants<double> {
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLowest = -708.396418532264;
  static constexpr double kLn2High = 6.93145751953125e-1;
  static constexpr double kLn2Low = 1.42860682030941723212e-6;
  static constexpr int kDegree = 13;
  static constexpr int kMantissaBits = 52;
};

constexpr double inverse_factorial(int n) {
  double result = 1;
  for (int i = 2; i <= n; ++i) result /= i;
  return result;
}

/// Σ r^k / k! from term k on, by Horner's rule.
template <class T, int k>
inline Vec<T> taylor_exp(Vec<T> r) {
  constexpr T kTerm = static_cast<T>(inverse_factorial(k));
  if constexpr (k == ExpConstants<T>::kDegree) {
    return broadcast(kTerm);
  } else {
    return taylor_exp<T, k + 1>(r) * r + kTerm;
  }
}

}  // namespace detail

/// exp(x) for x <= 0, within 1 ulp; results that would be subnormal are 0, NaN stays NaN.
template <class T>
inline Vec<T> exp_nonpositive(Vec<T> x) {
  using K = detail::ExpConstants<T>;
  const IntVec<T> underflows = x < K::kLowest;
  x = underflows ? broadcast(K::kLowest) : x;
  const Vec<T> shifted = x * static_cast<T>(1.4426950408889634) + K::kRound;
  const Vec<T> n = shifted - K::kRound;
  const Vec<T> r = (x - n * K::kLn2High) - n * K::kLn2Low;
  // The low bits of `shifted` are n; moved to the exponent and biased they are 2^n.
  constexpr auto kOne = std::int64_t{std::numeric_limits<T>::max_exponent - 1};
  IntVec<T> bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << K::kMantissaBits) + static_cast<decltype(bits[0] + 0)>(kOne << K::kMantissaBits);
  Vec<T> power;
  std::memcpy(&power, &bits, sizeof power);
  const Vec<T> result = detail::taylor_exp<T, 0>(r) * power;
  return underflows ? Vec<T>{} : result;
}

}  // namespace tenon::cpu
