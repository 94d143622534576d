#include "tensor/rules/linear_rules.h"

#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {

TensorSpec infer_linear(const InferContext& context) {
  const std::string& name = context.op().name;
  require_floating(context, 0);
  require_same_dtype(context);
  const Shape& input = context[0].shape;
  const Shape& weight = context[1].shape;
  TENON_CHECK(input.rank() >= 1 && weight.rank() == 2, ShapeError,
              "[{}] input {} and weight {}; needed (…, K) and (N, K)", name, input.to_string(),
              weight.to_string());
  TENON_CHECK(unify(input[-1], weight[1]), ShapeError,
              "[{}] input {} and weight {}; the last axis of input ({}) must equal the weight's "
              "second ({})",
              name, input.to_string(), weight.to_string(), input[-1].to_string(),
              weight[1].to_string());
  if (context.has(2)) {
    const Shape& bias = context[2].shape;
    TENON_CHECK(bias.rank() == 1 && unify(bias[0], weight[0]), ShapeError,
                "[{}] weight {} and bias {}; needed a bias of shape ({},)", name,
                weight.to_string(), bias.to_string(), weight[0].to_string());
  }
  Shape shape = input;
  shape[-1] = weight[0];
  return {context[0].dtype, std::move(shape), context[0].device};
}

void require_shape_of_product(const InferContext& context, int i, const Shape& product) {
  const Shape& shape = context[i].shape;
  bool fits = shape.rank() == product.rank();
  for (int axis = 0; fits && axis < shape.rank(); ++axis) fits = unify(product[axis], shape[axis]);
  TENON_CHECK(fits, ShapeError, "[{}] operand '{}' {}; needed the shape {} of the product",
              context.op().name, context.op().operands[static_cast<std::size_t>(i)].name,
              shape.to_string(), product.to_string());
}

double linear_flops(const KernelArgs& args) {
  return 2.0 * static_cast<double>(args.outputs[0].numel()) *
         static_cast<double>(args.inputs[1].size(1));
}

std::vector<Tensor> linear_gradients(const VjpContext& call, const Tensor& gradient) {
  std::vector<Tensor> gradients(3);
  // […,N] x [N,K] -> […,K]
  if (call.needs(0)) gradients[0] = matmul(gradient, call.input(1));
  if (!call.needs(1) && !call.needs(2)) return gradients;
  const Tensor rows = as_rows(gradient);  // (R, N)
  // [R,N]^T x [R,K] -> [N,K]
  if (call.needs(1)) gradients[1] = matmul(transpose(rows, 0, 1), as_rows(call.input(0)));
  if (call.needs(2)) gradients[2] = sum(rows, {0});
  return gradients;
}

}  // namespace tenon::ops
