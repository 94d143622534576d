// Samples for kernel tests: tensors with given values under several memory layouts, and comparison
// within a rounding error. The layouts are made by hand, not by ops under test.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tensor/tensor.h"
#include "tests/tensor/layouts.h"
#include "tests/tensor/threads.h"

namespace tenon::test {

using Values = std::vector<double>;

/// `value` rounded to `dtype`.
inline double rounded(double value, DType dtype) {
  return dispatch_float(dtype, [&]<typename T>() -> double {
    if constexpr (std::is_same_v<T, double>) {
      return value;
    } else {
      return static_cast<double>(static_cast<float>(static_cast<T>(static_cast<float>(value))));
    }
  });
}

/// Uniform in [-1, 1), rounded to `dtype`.
inline Values random_values(std::int64_t n, DType dtype, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<double> distribution(-1, 1);
  Values result(static_cast<std::size_t>(n));
  for (double& value : result) value = rounded(distribution(engine), dtype);
  return result;
}

/// A tensor of the given strides, `offset` elements into its storage; row-major `values`. What lies
/// between the elements is NaN, so that reading it shows.
inline Tensor strided(const Values& values, const Extents& sizes, const Extents& strides,
                      std::int64_t offset, DType dtype) {
  std::int64_t last = offset;
  for (int i = 0; i < sizes.size(); ++i)
    last += std::max<std::int64_t>(sizes[i] - 1, 0) * strides[i];
  const auto count = static_cast<std::size_t>(last + 1);
  auto storage = Storage::allocate(count * size_of(dtype), kCpu);
  dispatch_float(dtype, [&]<typename T>() {
    T* data = static_cast<T*>(storage->data());
    for (std::size_t i = 0; i < count; ++i) data[i] = static_cast<T>(NAN);
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::int64_t position = offset;
      auto rest = static_cast<std::int64_t>(i);
      for (int axis = sizes.size() - 1; axis >= 0; --axis) {
        position += rest % sizes[axis] * strides[axis];
        rest /= sizes[axis];
      }
      if constexpr (std::is_same_v<T, double>) {
        data[position] = values[i];
      } else {
        data[position] = static_cast<T>(static_cast<float>(values[i]));
      }
    }
  });
  return Tensor(std::move(storage), dtype, {sizes, strides, offset});
}

/// How samples lie in memory.
enum class Arrangement { contiguous, transposed, unaligned, padded, every_second };
inline constexpr Arrangement kArrangements[] = {Arrangement::contiguous, Arrangement::transposed,
                                                Arrangement::unaligned, Arrangement::padded,
                                                Arrangement::every_second};
inline constexpr const char* kArrangementNames[] = {"contiguous", "transposed", "unaligned",
                                                    "padded", "every_second"};

/// `values` of the given sizes under an arrangement: last two axes swapped, an odd offset, gaps
/// between rows, or gaps between elements.
inline Tensor arranged(const Values& values, const Extents& sizes, DType dtype,
                       Arrangement arrangement) {
  Extents spaced = sizes;
  std::int64_t offset = 0;
  const int last = sizes.size() - 1;
  if (last >= 0 && arrangement == Arrangement::padded) spaced[last] += 3;
  if (last >= 0 && arrangement == Arrangement::every_second) spaced[last] *= 2;
  if (arrangement == Arrangement::unaligned || arrangement == Arrangement::padded) offset = 1;
  if (last >= 1 && arrangement == Arrangement::transposed)
    std::swap(spaced[last], spaced[last - 1]);
  Extents strides = contiguous_strides(spaced);
  if (last >= 1 && arrangement == Arrangement::transposed)
    std::swap(strides[last], strides[last - 1]);
  if (last >= 0 && arrangement == Arrangement::every_second) strides[last] = 2;
  return strided(values, sizes, strides, offset, dtype);
}

inline Tensor dense(const Values& values, const Extents& sizes, DType dtype) {
  return arranged(values, sizes, dtype, Arrangement::contiguous);
}

/// Unit roundoff of what `dtype` is computed in.
inline double compute_roundoff(DType dtype) { return unit_roundoff(accumulation_dtype(dtype)); }

/// |actual - expected| <= bound[i] + one rounding to `dtype`; NaN and Inf must agree exactly.
inline void expect_close(const Tensor& actual, const Values& expected, const Values& bound,
                         const std::string& what) {
  const Values values = actual.to_doubles();
  ASSERT_EQ(values.size(), expected.size()) << what;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(expected[i])) {
      const bool same = std::isnan(expected[i]) ? std::isnan(values[i]) : values[i] == expected[i];
      ASSERT_TRUE(same) << what << ": element " << i << " is " << values[i] << ", expected "
                        << expected[i];
      continue;
    }
    // Results below the smallest normal number may be flushed or lose digits.
    const double tiny = actual.dtype() == DType::float16 ? 6e-8 : 1.2e-38;
    const double allowed =
        bound[i] + 1.01 * unit_roundoff(actual.dtype()) * std::fabs(expected[i]) + tiny;
    ASSERT_NEAR(values[i], expected[i], allowed) << what << ": element " << i;
  }
}

inline void expect_close(const Tensor& actual, const Values& expected, double bound,
                         const std::string& what) {
  expect_close(actual, expected, Values(expected.size(), bound), what);
}

}  // namespace tenon::test
