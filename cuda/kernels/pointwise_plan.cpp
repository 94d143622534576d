#include "cuda/kernels/pointwise_plan.h"

#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

/// Whether vectors of `length` elements of operand `i` start at aligned addresses.
bool has_aligned_vectors(const StridedAxes& axes, int i, const TensorView& view, int length) {
  const int inner = axes.sizes.size() - 1;
  if (axes.strides[i][inner] != 1) return true;  // read one by one
  for (int axis = 0; axis < inner; ++axis) {
    if (axes.strides[i][axis] % length != 0) return false;
  }
  const std::size_t bytes = static_cast<std::size_t>(length) * size_of(view.dtype);
  return reinterpret_cast<std::uintptr_t>(view.data) % bytes == 0;
}

}  // namespace

PointwisePlan plan_pointwise(std::span<const TensorView> views, const PointwiseShape& shape) {
  PointwisePlan plan;
  const std::int64_t numel = views[0].numel();
  if (numel == 0) return plan;
  plan.axes = collapse_axes(views, /*sort=*/true);
  const int inner = plan.axes.sizes.size() - 1;
  bool vectors = plan.axes.strides[0][inner] == 1 &&
                 (inner == 0 || plan.axes.sizes[inner] % shape.length == 0);
  for (std::size_t i = 0; i < views.size(); ++i) {
    vectors =
        vectors && has_aligned_vectors(plan.axes, static_cast<int>(i), views[i], shape.length);
  }
  plan.first_single = vectors ? numel / shape.length * shape.length : 0;
  plan.vector_blocks = ceil_div(plan.first_single, shape.per_block);
  plan.blocks = plan.vector_blocks + ceil_div(numel - plan.first_single, shape.per_block);
  return plan;
}

}  // namespace tenon::cuda
