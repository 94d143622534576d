// Random tensors in every memory layout that kernels must take, and their values as doubles. Both
// go through raw pointers and strides, so that no op under test takes part.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tensor/storage.h"
#include "tensor/tensor.h"
#include "tests/support/expect_error.h"

namespace tenon::test {

enum class Memory {
  contiguous,
  permuted,  // axes in reverse order in memory
  narrowed,  // part of a larger tensor, starting at an odd element
  expanded,  // stride 0 along the first axis
};
inline constexpr Memory kAllMemory[] = {Memory::contiguous, Memory::permuted, Memory::narrowed,
                                        Memory::expanded};
inline constexpr DType kFloats[] = {DType::float32, DType::float64, DType::float16,
                                    DType::bfloat16};
inline constexpr DType kIntegers[] = {DType::int64, DType::int32, DType::uint8};
inline constexpr DType kAllDTypes[] = {DType::float32,  DType::float64, DType::float16,
                                       DType::bfloat16, DType::int64,   DType::int32,
                                       DType::uint8,    DType::boolean};

/// Those above are computed with; these are stored, moved, compared and cast as well.
inline constexpr DType kStoredDTypes[] = {
    DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int64,
    DType::int32,   DType::int16,   DType::int8,    DType::uint8,    DType::boolean};

inline const char* name(Memory memory) {
  constexpr const char* kNames[] = {"contiguous", "permuted", "narrowed", "expanded"};
  return kNames[static_cast<int>(memory)];
}

inline Layout layout_of(const Extents& sizes, Memory memory) {
  Layout layout = Layout::contiguous(sizes);
  const int rank = sizes.size();
  if (memory == Memory::permuted) {
    std::int64_t stride = 1;
    for (int axis = 0; axis < rank; ++axis) {
      layout.strides[axis] = stride;
      stride *= std::max<std::int64_t>(1, sizes[axis]);
    }
  } else if (memory == Memory::narrowed) {
    Extents larger = sizes;
    for (int axis = 0; axis < rank; ++axis) larger[axis] += 3;
    layout.strides = contiguous_strides(larger);
    layout.offset = 1;
  } else if (memory == Memory::expanded && rank > 0) {
    layout.strides[0] = 0;
  }
  return layout;
}

/// Calls f(position in storage) for each element in row-major order.
template <class F>
void for_each_position(const Layout& layout, F&& f) {
  const std::int64_t count = layout.numel();
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i;
    std::int64_t at = layout.offset;
    for (int axis = layout.rank() - 1; axis >= 0; --axis) {
      at += rest % layout.sizes[axis] * layout.strides[axis];
      rest /= layout.sizes[axis];
    }
    f(at);
  }
}

/// A CPU tensor with values from next(), rounded to `dtype` (modulo its range for integers).
template <class Next>
Tensor make_tensor(const Extents& sizes, DType dtype, Memory memory, Next&& next) {
  const Layout layout = layout_of(sizes, memory);
  std::int64_t elements = layout.offset + 1;
  for (int axis = 0; axis < sizes.size(); ++axis) {
    elements += std::max<std::int64_t>(0, sizes[axis] - 1) * layout.strides[axis];
  }
  auto storage = Storage::allocate(static_cast<std::size_t>(elements) * size_of(dtype), kCpu);
  dispatch_all(dtype, [&]<class T>() {
    auto* data = static_cast<T*>(storage->data());
    for_each_position(layout, [&](std::int64_t at) {
      const double value = next();
      if constexpr (std::is_same_v<T, bool>)
        data[at] = value > 0;
      else if constexpr (std::is_integral_v<T>)
        data[at] = static_cast<T>(static_cast<std::int64_t>(value));
      else
        data[at] = T(static_cast<compute_type<T>>(value));
    });
  });
  return Tensor(std::move(storage), dtype, layout);
}

/// Uniform values in [low, high).
inline Tensor random_tensor(const Extents& sizes, DType dtype, Memory memory, unsigned seed,
                            double low = -2, double high = 2) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> uniform(low, high);
  return make_tensor(sizes, dtype, memory, [&] { return uniform(generator); });
}

/// The elements in row-major order.
inline std::vector<double> values_of(const Tensor& tensor) {
  std::vector<double> values;
  dispatch_all(tensor.dtype(), [&]<class T>() {
    const auto* data = static_cast<const T*>(tensor.storage()->data());
    for_each_position(tensor.layout(), [&](std::int64_t at) {
      values.push_back(static_cast<double>(static_cast<compute_type<T>>(data[at])));
    });
  });
  return values;
}

inline TensorOptions of(DType dtype) { return {dtype, kCpu}; }

/// Sizes as numbers.
inline Extents sizes_of(const Tensor& tensor) { return tensor.layout().sizes; }

/// Relative error that one operation, computed in float32 (float64) and rounded once, may have.
inline double tolerance(DType dtype) {
  switch (dtype) {
    case DType::float64: return 1e-13;
    case DType::float32: return 1e-6;
    case DType::float16: return 6e-4;
    case DType::bfloat16: return 5e-3;
    default: return 0;
  }
}

/// Half the distance of the smallest values of `dtype`: what rounding may cost beside zero.
inline double smallest_step(DType dtype) { return dtype == DType::float16 ? 0x1p-25 : 1e-20; }

/// NaN equals NaN, inf equals inf.
inline bool is_close(double got, double expected, double rtol, double atol) {
  if (std::isnan(expected)) return std::isnan(got);
  if (got == expected) return true;
  return std::fabs(got - expected) <= atol + rtol * std::fabs(expected);
}

/// Compares all elements; stops at the first that differs.
inline void expect_values(const Tensor& got, const std::vector<double>& expected, double rtol,
                          double atol = 0) {
  const std::vector<double> values = values_of(got);
  ASSERT_EQ(values.size(), expected.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_TRUE(is_close(values[i], expected[i], rtol, atol))
        << "element " << i << ": got " << values[i] << ", expected " << expected[i];
  }
}

/// Runs f, which must throw E with `text` in its message.
template <class E, class F>
void expect_error(F&& f, const std::string& text) {
  const std::string message = error_text<E>(f);
  EXPECT_NE(message.find(text), std::string::npos)
      << "message: " << message << "\nneeded: " << text;
}

}  // namespace tenon::test
