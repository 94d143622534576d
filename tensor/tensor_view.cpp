#include "tensor/tensor_view.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "tensor/support/check.h"

namespace tenon {

void throw_rank_too_large(std::size_t rank) {
  detail::fail<ShapeError>("a tensor of rank {} was asked for; the largest rank is {}", rank,
                           kMaxRank);
}

void Extents::insert(int position, std::int64_t value) {
  push_back(value);
  for (int i = rank_ - 1; i > position; --i) (*this)[i] = (*this)[i - 1];
  (*this)[position] = value;
}

void Extents::erase(int position) {
  for (int i = position; i + 1 < rank_; ++i) (*this)[i] = (*this)[i + 1];
  --rank_;
}

Extents contiguous_strides(const Extents& sizes) {
  Extents strides = Extents::filled(sizes.size(), 1);
  for (int i = sizes.size() - 2; i >= 0; --i) {
    strides[i] = strides[i + 1] * (sizes[i + 1] == 0 ? 1 : sizes[i + 1]);
  }
  return strides;
}

Extents channels_last_strides(const Extents& sizes) {
  const std::int64_t channels = sizes[1], height = sizes[2], width = sizes[3];
  return {channels * height * width, 1, width * channels, channels};
}

bool is_channels_last(const Extents& sizes, const Extents& strides) {
  if (sizes.size() != 4 || Layout{sizes, strides}.is_contiguous()) return false;
  const Extents wanted = channels_last_strides(sizes);
  for (int axis = 0; axis < 4; ++axis) {
    if (sizes[axis] > 1 && strides[axis] != wanted[axis]) return false;
  }
  return true;
}

bool Layout::is_contiguous() const {
  if (numel() == 0) return true;
  std::int64_t expected = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (sizes[i] != 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

namespace {

/// How far two elements can be apart along some axes: step times any whole number from low to high.
struct Span {
  std::int64_t step = 0;  // > 0
  std::int64_t low = 0;
  std::int64_t high = 0;
};

/// The distances between elements of layouts: sums of one multiple of each step.
class Distances {
 public:
  void add(std::int64_t stride, std::int64_t low, std::int64_t high) {
    if (stride == 0 || low == high) return;
    if (stride < 0) {
      std::swap(low, high);
      low = -low;
      high = -high;
    }
    const std::int64_t step = std::abs(stride);
    least_ += step * low;
    most_ += step * high;
    for (int i = 0; i < count_; ++i) {
      if (span(i).step != step) continue;
      span(i).low += low;
      span(i).high += high;
      return;
    }
    spans_[static_cast<std::size_t>(count_++)] = {step, low, high};
  }

  bool contain(std::int64_t distance) {
    if (distance < least_ || distance > most_) return false;
    sort();
    return search(0, distance, least_, most_);
  }

  /// Whether 0 is a sum of multiples that are not all 0; the spans are symmetric.
  bool contain_zero_twice() {
    sort();
    std::int64_t rest = most_;  // the largest sum of the spans after the i-th
    for (int i = 0; i < count_; ++i) {
      const std::int64_t step = span(i).step;
      rest -= step * span(i).high;
      for (std::int64_t n = 1; n <= span(i).high && n * step <= rest; ++n) {
        if (search(i + 1, n * step, -rest, rest)) return true;
      }
    }
    return false;
  }

 private:
  Span& span(int i) { return spans_[static_cast<std::size_t>(i)]; }
  void sort() {
    std::sort(spans_.begin(), spans_.begin() + count_,
              [](const Span& a, const Span& b) { return a.step > b.step; });
  }
  static std::int64_t floor_div(std::int64_t a, std::int64_t b) {
    return a / b - (a % b < 0 ? 1 : 0);
  }

  /// Whether the spans from the i-th on, whose sums go from `least` to `most`, make `distance`. Axes
  /// nest as a rule: then at most two multiples of a step come near enough.
  bool search(int i, std::int64_t distance, std::int64_t least, std::int64_t most) {
    if (i == count_) return distance == 0;
    const Span& s = span(i);
    least -= s.step * s.low;
    most -= s.step * s.high;
    const std::int64_t first = std::max(s.low, -floor_div(most - distance, s.step));
    const std::int64_t last = std::min(s.high, floor_div(distance - least, s.step));
    for (std::int64_t n = first; n <= last; ++n) {
      if (search(i + 1, distance - n * s.step, least, most)) return true;
    }
    return false;
  }

  std::array<Span, 2 * kMaxRank + 1> spans_;
  int count_ = 0;
  std::int64_t least_ = 0;
  std::int64_t most_ = 0;
};

}  // namespace

bool overlaps_itself(const Layout& layout) {
  if (layout.is_contiguous()) return false;
  Distances distances;
  for (int axis = 0; axis < layout.rank(); ++axis) {
    const std::int64_t last = layout.sizes[axis] - 1;
    if (last < 0) return false;
    const std::int64_t stride = layout.strides[axis];
    if (last == 0) continue;
    if (stride == 0) return true;
    for (int other = 0; other < axis; ++other) {  // a step along one, a step back along the other
      if (layout.sizes[other] > 1 && std::abs(layout.strides[other]) == std::abs(stride))
        return true;
    }
    distances.add(stride, -last, last);
  }
  return distances.contain_zero_twice();
}

bool overlap(const TensorView& a, const TensorView& b) {
  if (!(a.device == b.device) || a.numel() == 0 || b.numel() == 0) return false;
  const auto a_bytes = static_cast<std::int64_t>(size_of(a.dtype));
  const auto b_bytes = static_cast<std::int64_t>(size_of(b.dtype));
  Distances distances;
  distances.add(1, 1 - b_bytes, a_bytes - 1);  // bytes of two elements
  for (int i = 0; i < a.rank(); ++i) distances.add(a.strides[i] * a_bytes, 0, a.sizes[i] - 1);
  for (int i = 0; i < b.rank(); ++i) distances.add(b.strides[i] * b_bytes, 1 - b.sizes[i], 0);
  return distances.contain(static_cast<const char*>(b.data) - static_cast<const char*>(a.data));
}

}  // namespace tenon
