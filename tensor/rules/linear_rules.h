// What linear, matmul and the ops that begin with one of them share: shapes, operations, gradients.
#pragma once

#include <vector>

#include "tensor/op.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// input·weightᵀ + bias from operands 0 to 2, the last of which may be absent:
/// (…, K), (N, K), (N) -> (…, N).
TensorSpec infer_linear(const InferContext& context);

/// ShapeError unless operand `i` has the product's shape.
void require_shape_of_product(const InferContext& context, int i, const Shape& product);

double linear_flops(const KernelArgs& args);

/// Gradients of operands 0 to 2 from `gradient` (…, N), that of the product with its bias; for a call
/// that saves operands 0 and 1.
std::vector<Tensor> linear_gradients(const VjpContext& call, const Tensor& gradient);

}  // namespace tenon::ops
