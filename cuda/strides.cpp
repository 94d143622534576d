#include "cuda/strides.h"

#include <algorithm>

#include "tensor/support/check.h"

namespace tenon::cuda {

Extents broadcast_strides(const TensorView& view, const Extents& sizes) {
  const int missing = sizes.size() - view.rank();
  TENON_INTERNAL(missing >= 0, "an operand of sizes {} broadcast to {}", view.sizes, sizes);
  Extents strides = Extents::filled(sizes.size(), 0);
  for (int axis = missing; axis < sizes.size(); ++axis) {
    const std::int64_t size = view.sizes[axis - missing];
    TENON_INTERNAL(size == sizes[axis] || size == 1, "an operand of sizes {} broadcast to {}",
                   view.sizes, sizes);
    if (size != 1) strides[axis] = view.strides[axis - missing];
  }
  return strides;
}

StridedAxes collapse_axes(std::span<const TensorView> views, bool sort) {
  Extents strides[StridedAxes::kMaxOperands];
  for (std::size_t i = 0; i < views.size(); ++i) {
    strides[i] = broadcast_strides(views[i], views[0].sizes);
  }
  return collapse_axes(views[0].sizes, std::span(strides, views.size()), sort);
}

StridedAxes collapse_axes(const Extents& sizes, std::span<const Extents> strides, bool sort) {
  StridedAxes result;
  result.operands = static_cast<int>(strides.size());
  std::array<int, kMaxRank> order{};
  int kept = 0;
  for (int axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] != 1) order[static_cast<std::size_t>(kept++)] = axis;
  }
  if (sort) {
    std::stable_sort(order.begin(), order.begin() + kept,
                     [&](int a, int b) { return strides[0][a] > strides[0][b]; });
  }
  for (int i = 0; i < kept; ++i) {
    const int axis = order[static_cast<std::size_t>(i)];
    const int last = result.sizes.size() - 1;
    bool merges = last >= 0;
    for (std::size_t k = 0; merges && k < strides.size(); ++k) {
      merges = result.strides[k][last] == strides[k][axis] * sizes[axis];
    }
    if (merges)
      result.sizes[last] *= sizes[axis];
    else
      result.sizes.push_back(sizes[axis]);
    for (std::size_t k = 0; k < strides.size(); ++k) {
      if (merges)
        result.strides[k][last] = strides[k][axis];
      else
        result.strides[k].push_back(strides[k][axis]);
    }
  }
  if (result.sizes.empty()) {
    result.sizes.push_back(1);
    for (std::size_t k = 0; k < strides.size(); ++k) result.strides[k].push_back(1);
  }
  return result;
}

}  // namespace tenon::cuda
