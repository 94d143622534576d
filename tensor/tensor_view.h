// What a kernel sees of a tensor: a pointer, a dtype, and concrete sizes and strides (in elements).
// It owns nothing. Extents is a fixed-capacity vector, so building one never allocates.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "tensor/device.h"
#include "tensor/dtype.h"

namespace tenon {

/// The largest rank Tenon supports; more axes are refused with a ShapeError.
inline constexpr int kMaxRank = 8;

[[noreturn]] void throw_rank_too_large(std::size_t rank);

/// Sizes or strides of up to kMaxRank axes.
class Extents {
 public:
  Extents() = default;
  Extents(std::initializer_list<std::int64_t> values)
      : Extents(std::span(values.begin(), values.size())) {}
  Extents(const std::vector<std::int64_t>& values) : Extents(std::span(values)) {}
  explicit Extents(std::span<const std::int64_t> values) {
    if (values.size() > kMaxRank) throw_rank_too_large(values.size());
    for (std::int64_t value : values) values_[static_cast<std::size_t>(rank_++)] = value;
  }
  static Extents filled(int rank, std::int64_t value) {
    if (rank > kMaxRank) throw_rank_too_large(static_cast<std::size_t>(rank));
    Extents result;
    result.rank_ = rank;
    for (int i = 0; i < rank; ++i) result[i] = value;
    return result;
  }

  int size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  std::int64_t& operator[](int i) { return values_[static_cast<std::size_t>(i)]; }
  std::int64_t operator[](int i) const { return values_[static_cast<std::size_t>(i)]; }
  std::int64_t back() const { return values_[static_cast<std::size_t>(rank_ - 1)]; }
  const std::int64_t* begin() const { return values_.data(); }
  const std::int64_t* end() const { return values_.data() + rank_; }
  void push_back(std::int64_t value) {
    if (rank_ == kMaxRank) throw_rank_too_large(kMaxRank + 1);
    values_[static_cast<std::size_t>(rank_++)] = value;
  }
  void insert(int position, std::int64_t value);
  void erase(int position);
  std::int64_t product() const {
    std::int64_t result = 1;
    for (int i = 0; i < rank_; ++i) result *= (*this)[i];
    return result;
  }
  friend bool operator==(const Extents& a, const Extents& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i) {
      if (a[i] != b[i]) return false;
    }
    return true;
  }

 private:
  std::array<std::int64_t, kMaxRank> values_{};
  int rank_ = 0;
};

/// Row-major strides of contiguous `sizes`.
Extents contiguous_strides(const Extents& sizes);

/// Strides that put (N, C, H, W) into memory as (N, H, W, C), without gaps.
Extents channels_last_strides(const Extents& sizes);

/// Sizes and strides in elements; `offset` counts from the first element of the storage.
struct Layout {
  Extents sizes;
  Extents strides;
  std::int64_t offset = 0;

  static Layout contiguous(const Extents& sizes) { return {sizes, contiguous_strides(sizes), 0}; }
  int rank() const { return sizes.size(); }
  std::int64_t numel() const { return sizes.product(); }
  /// Row-major without gaps; axes of size 1 may have any stride, an empty tensor is contiguous.
  bool is_contiguous() const;
  friend bool operator==(const Layout&, const Layout&) = default;
};

/// Images (N, C, H, W) in memory as (N, H, W, C), without gaps, and not row-major too.
bool is_channels_last(const Extents& sizes, const Extents& strides);

/// Whether two elements lie in one place, as those of an expanded tensor or of windows that overlap do.
bool overlaps_itself(const Layout& layout);

/// A kernel's operand. `present` is false for an absent optional operand.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::float32;
  Device device;
  Extents sizes;
  Extents strides;
  bool present = false;

  int rank() const { return sizes.size(); }
  std::int64_t numel() const { return sizes.product(); }
  std::int64_t size(int axis) const { return sizes[axis < 0 ? axis + rank() : axis]; }
  std::int64_t stride(int axis) const { return strides[axis < 0 ? axis + rank() : axis]; }
  bool is_contiguous() const { return Layout{sizes, strides, 0}.is_contiguous(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// Whether the two have a byte of memory in common; exact for any strides: columns of one matrix do
/// not overlap other columns of it.
bool overlap(const TensorView& a, const TensorView& b);

}  // namespace tenon
