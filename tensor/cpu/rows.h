// Rows of tensors in the type they are computed in: loading with conversion, storing with rounding,
// row statistics, per-thread scratch memory, and the offset of a row in a strided tensor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"
#include "tensor/tensor_view.h"

namespace tenon::cpu {

/// target[i] = source[i · stride], converted; for float32 and float64 a copy.
template <class T>
void load_row(const T* source, std::int64_t stride, std::int64_t n, compute_type<T>* target);

/// target[i · stride] = source[i], rounded to nearest even.
template <class T>
void store_row(const compute_type<T>* source, std::int64_t n, T* target, std::int64_t stride);

/// target[i] += other[i].
template <class C>
void add_row(C* target, const C* other, std::int64_t n);

/// Σ x[i]: vector lanes over short runs, the runs in double.
template <class C>
double row_sum(const C* x, std::int64_t n);

/// Σ a[i]·b[i], summed as row_sum does.
template <class C>
double row_dot(const C* a, const C* b, std::int64_t n);

/// x[i] -= mean, and Σ x[i]² of the differences.
template <class C>
double center_row(C* x, std::int64_t n, C mean);

/// The largest element, passing over NaN; -inf for n == 0. x is padded with -inf to whole vectors.
template <class C>
C row_max(const C* x, std::int64_t n);

/// x[i] = exp(x[i] - max) and their sum. x is padded with -inf to whole vectors; max >= x[i].
template <class C>
double exp_row(C* x, std::int64_t n, C max);

/// x[i] *= factor.
template <class C>
void scale_row(C* x, std::int64_t n, C factor);

/// Fills x[n .. padded(n)) with -inf, as row_max and exp_row need it.
template <class C>
void pad_row(C* x, std::int64_t n);

/// Memory that one thread reuses from call to call; declare it thread_local. OutOfMemory when it
/// cannot grow.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  /// Room for `count` values, 64-byte aligned, with undefined contents.
  template <class C>
  C* get(std::int64_t count) {
    return static_cast<C*>(reserve(static_cast<std::size_t>(count), sizeof(C)));
  }

 private:
  void* reserve(std::size_t count, std::size_t size);
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// The offset in elements of the `index`-th row-major position of `sizes`.
inline std::int64_t offset_of(std::int64_t index, const Extents& sizes, const Extents& strides) {
  std::int64_t offset = 0;
  for (int axis = sizes.size() - 1; axis > 0; --axis) {
    offset += index % sizes[axis] * strides[axis];
    index /= sizes[axis];
  }
  return sizes.empty() ? 0 : offset + index * strides[0];
}

/// The first `count` entries.
inline Extents first_axes(const Extents& extents, int count) {
  Extents result;
  for (int i = 0; i < count; ++i) result.push_back(extents[i]);
  return result;
}

/// How many rows of n elements make a task: enough to outweigh handing it to a thread.
inline std::int64_t rows_per_task(std::int64_t n) {
  constexpr std::int64_t kElementsPerTask = 16384;
  return n >= kElementsPerTask ? 1 : kElementsPerTask / (n > 0 ? n : 1);
}

}  // namespace tenon::cpu
