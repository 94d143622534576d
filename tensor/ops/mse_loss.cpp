// mse_loss: a composition, so that its gradient is that of its parts.
#include "tensor/functional.h"

namespace tenon {

Tensor mse_loss(const Tensor& input, const Tensor& target, Reduction reduction) {
  const Tensor squares = square(input - target);
  switch (reduction) {
    case Reduction::mean: return mean(squares);
    case Reduction::sum: return sum(squares);
    default: return squares;
  }
}

}  // namespace tenon
