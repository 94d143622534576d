// mse_loss: a composition, so that its gradient is that of its parts.
#include "tensor/functional.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor mse_loss(const Tensor& input, const Tensor& target, Reduction reduction) {
  if (!ops::in_pattern()) {  // where ranks are unknown
    TENON_CHECK(ops::same_sizes(input.shape(), target.shape()), ShapeError,
                "[mse_loss] input {} and target {}; needed equal shapes: reshape one of "
                "them, or expand() it where broadcasting is meant",
                input.shape().to_string(), target.shape().to_string());
  }
  const Tensor squares = square(input - target);
  switch (reduction) {
    case Reduction::mean: return mean(squares);
    case Reduction::sum: return sum(squares);
    default: return squares;
  }
}

}  // namespace tenon
