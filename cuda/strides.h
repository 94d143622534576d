// Strided operands as kernels walk them: axes of equal meaning merged on the host, and a linear index
// turned into offsets on the device.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "tensor/philox.h"  // TENON_HOST_DEVICE
#include "tensor/tensor_view.h"

namespace tenon::cuda {

/// Division of indices below 2^31 by a number fixed on the host: one multiplication and a shift.
/// T. Granlund, P. L. Montgomery, "Division by Invariant Integers using Multiplication", PLDI 1994.
struct Divisor {
  std::uint32_t multiplier = 1;
  std::uint32_t shift = 0;

  Divisor() = default;
  /// 1 <= divisor < 2^31.
  explicit Divisor(std::uint32_t divisor) {
    while ((std::uint64_t{1} << shift) < divisor) ++shift;
    const std::uint64_t power = std::uint64_t{1} << shift;
    multiplier = static_cast<std::uint32_t>(((power - divisor) << 32) / divisor + 1);
  }
  TENON_HOST_DEVICE std::uint32_t divide(std::uint32_t n) const {
    const auto high = static_cast<std::uint32_t>((std::uint64_t{n} * multiplier) >> 32);
    return (high + n) >> shift;
  }
};

inline constexpr std::int64_t kMaxNarrowIndex = (std::int64_t{1} << 31) - 1;

/// Common sizes of up to kMaxOperands operands and their strides, in elements, outermost axis first.
struct StridedAxes {
  static constexpr int kMaxOperands = 4;
  int operands = 0;
  Extents sizes;
  Extents strides[kMaxOperands];
  std::int64_t numel() const { return sizes.product(); }
};

/// `view`'s strides when it is broadcast to `sizes` (NumPy's rule): 0 on the axes it lacks or repeats.
Extents broadcast_strides(const TensorView& view, const Extents& sizes);

/// The first view's sizes with all views broadcast to them; axes of size 1 dropped, axes sorted by the
/// first view's strides if `sort`, and neighbours merged where every operand allows it. At least one
/// axis is left.
StridedAxes collapse_axes(std::span<const TensorView> views, bool sort);
/// The same for given strides.
StridedAxes collapse_axes(const Extents& sizes, std::span<const Extents> strides, bool sort);

/// Not inlined: a 64-bit division is long code, and kernels would hold many copies of it.
#if defined(__CUDACC__)
static __host__ __device__ __noinline__
#else
inline
#endif
    std::int64_t
    divide_wide(std::int64_t a, std::int64_t b) {
  return a / b;
}

/// A linear index (row-major over `sizes`) to the offsets of kOperands operands.
template <int kOperands>
struct IndexMap {
  int rank = 0;
  bool wide = false;  // indices of 2^31 and more: 64-bit divisions
  Divisor divisors[kMaxRank];
  std::int64_t sizes[kMaxRank];
  std::int64_t strides[kOperands][kMaxRank];

  IndexMap() = default;
  explicit IndexMap(const StridedAxes& axes)
      : rank(axes.sizes.size()), wide(axes.numel() > kMaxNarrowIndex) {
    for (int axis = 0; axis < rank; ++axis) {
      sizes[axis] = axes.sizes[axis];
      if (!wide && sizes[axis] > 0) {
        divisors[axis] = Divisor(static_cast<std::uint32_t>(sizes[axis]));
      }
      for (int i = 0; i < kOperands; ++i) strides[i][axis] = axes.strides[i][axis];
    }
  }

  /// Stride of the innermost axis.
  TENON_HOST_DEVICE std::int64_t inner_stride(int operand) const {
    return strides[operand][rank - 1];
  }

  TENON_HOST_DEVICE void offsets(std::int64_t index, std::int64_t (&result)[kOperands]) const {
    for (int i = 0; i < kOperands; ++i) result[i] = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int axis = rank - 1; axis > 0; --axis) {
      const std::int64_t quotient =
          wide
              ? divide_wide(index, sizes[axis])
              : static_cast<std::int64_t>(divisors[axis].divide(static_cast<std::uint32_t>(index)));
      add_axis(axis, index - quotient * sizes[axis], result,
               std::make_integer_sequence<int, kOperands>{});
      index = quotient;
    }
    add_axis(0, index, result, std::make_integer_sequence<int, kOperands>{});
  }

 private:
  /// Without a loop: one inside that over axes makes nvcc unroll the latter, whatever it is told.
  template <int... kOperand>
  TENON_HOST_DEVICE void add_axis(int axis, std::int64_t position,
                                  std::int64_t (&result)[kOperands],
                                  std::integer_sequence<int, kOperand...>) const {
    ((result[kOperand] += position * strides[kOperand][axis]), ...);
  }
};

}  // namespace tenon::cuda
