// select: one slice of an axis, which goes; a narrow and a squeeze.
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor select(const Tensor& input, std::int64_t dim, std::int64_t index) {
  TENON_CHECK(ops::in_pattern() || input.dim() > 0, ShapeError,
              "[select] the input is a scalar; needed an axis");
  const std::int64_t axis = ops::axis_of("select", input, dim);
  const Dim start = index < 0 ? input.size(axis) + index : Dim(index);
  if (!ops::in_pattern()) {
    TENON_CHECK(Dim(0) <= start && start < input.size(axis), ValueError,
                "[select] index {} along axis {} of the input {}; needed -{} <= index < {}", index,
                axis, input.shape().to_string(), input.size(axis).to_string(),
                input.size(axis).to_string());
  }
  return squeeze(narrow(input, axis, start, 1), axis);
}

}  // namespace tenon
