// stack: tensors along a new axis; each gets that axis, then they are concatenated.
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor stack(const std::vector<Tensor>& tensors, std::int64_t dim) {
  TENON_CHECK(!tensors.empty() && tensors[0].defined(), ValueError,
              "[stack] no tensors; needed at least one");
  std::int64_t axis = dim;
  if (!ops::in_pattern()) axis = ops::normalize_axis("stack", dim, tensors[0].dim() + 1);
  std::vector<Tensor> pieces;
  for (const Tensor& tensor : tensors) {
    TENON_CHECK(ops::in_pattern() || (tensor && tensor.dim() == tensors[0].dim()), ShapeError,
                "[stack] tensor {} has shape {} and tensor 0 has {}; needed one shape",
                pieces.size(), tensor ? tensor.shape().to_string() : "none",
                tensors[0].shape().to_string());
    pieces.push_back(unsqueeze(tensor, axis));
  }
  // cat refuses other sizes, except along its own axis, which is 1 for all.
  return cat(pieces, axis);
}

}  // namespace tenon
