#include "tensor/rules/gradients.h"

#include "tensor/functional.h"

namespace tenon::ops {

Tensor sum_to(const Tensor& gradient, const Shape& shape) {
  const Shape& from = gradient.shape();
  if (from.same_as(shape)) return gradient;
  const int added = from.rank() - shape.rank();
  std::vector<std::int64_t> axes;
  for (int axis = 0; axis < from.rank(); ++axis) {
    const bool repeated =
        axis < added || (!shape[axis - added].same_as(from[axis]) && shape[axis - added] == Dim(1));
    if (repeated) axes.push_back(axis);
  }
  const Tensor total = axes.empty() ? gradient : sum(gradient, axes, /*keepdim=*/true);
  return added == 0 ? total : reshape(total, shape);
}

Tensor as_rows(const Tensor& tensor) {
  const Shape& shape = tensor.shape();
  if (shape.rank() == 2) return tensor;
  Dim rows = 1;
  for (int axis = 0; axis + 1 < shape.rank(); ++axis) rows *= shape[axis];
  return reshape(tensor, {rows, shape[-1]});
}

}  // namespace tenon::ops
