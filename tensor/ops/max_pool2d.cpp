// max_pool2d, and its gradient, which the indices of the largest elements lead back.
#include "tensor/cpu/pool2d.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/pool_rules.h"

namespace tenon {

Tensor max_pool2d(const Tensor& input, Size2 kernel_size, Size2 stride, Size2 padding) {
  static const Op& op = get_op("max_pool2d");
  const Tensor operands[] = {input};
  return apply(op, operands, ops::pool_attrs(kernel_size, stride, padding)).at(0);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_max_pool2d(const InferContext& context) {
  const TensorSpec values = infer_pool(context);
  TensorSpec indices = values;
  indices.dtype = DType::int64;
  return {values, indices};
}

std::vector<Tensor> vjp_max_pool2d(const VjpContext& call) {
  if (!call.needs(0)) return {Tensor()};
  return {max_pool2d_backward(
      call.cotangent(0), call.output(1),
      pool_backward_attrs(call.attributes<Pool2dAttrs>(), call.input_spec(0).shape))};
}

std::vector<TensorSpec> infer_max_pool2d_backward(const InferContext& context) {
  require_same_shape(context, 0, 1);
  return {infer_pool_backward(context)};
}

/// The gradient is linear in grad: each element of grad comes from where its index points.
std::vector<Tensor> vjp_max_pool2d_backward(const VjpContext& call) {
  std::vector<Tensor> gradients(2);
  if (!call.needs(0)) return gradients;
  const Tensor cotangent = call.cotangent(0);  // (N, C, H, W)
  const Tensor indices = call.input(1);        // (N, C, H', W')
  const Dim planes = cotangent.size(0) * cotangent.size(1);
  const Shape flat{planes, cotangent.size(2) * cotangent.size(3)};
  const Shape flat_indices{planes, indices.size(2) * indices.size(3)};
  const Tensor picked = gather(reshape(cotangent, flat), 1, reshape(indices, flat_indices));
  gradients[0] = reshape(picked, indices.shape());
  return gradients;
}

}  // namespace

Tensor max_pool2d_backward(const Tensor& grad, const Tensor& indices,
                           const Pool2dBackwardAttrs& attrs) {
  static const Op& op = get_op("max_pool2d_backward");
  return apply1(op, {grad, indices}, attrs);
}

Op define_max_pool2d() {
  return OpBuilder("max_pool2d")
      .doc(
          "The largest value of each window, (N, C, H, W) -> (N, C, H', W'), NaN if it holds one; "
          "and "
          "its index in the plane (H, W), int64, the first of equals.")
      .operand("input")
      .infer(infer_max_pool2d)
      .vjp(vjp_max_pool2d)
      .saves_outputs({1})
      .cpu({.name = "cpu.max_pool2d", .run = cpu::max_pool2d})
      .done();
}

Op define_max_pool2d_backward() {
  return OpBuilder("max_pool2d_backward")
      .doc(
          "The gradient of max_pool2d's input: each element of grad, added where its index points.")
      .operand("grad")
      .operand("indices")
      .infer(infer_max_pool2d_backward)
      .vjp(vjp_max_pool2d_backward)
      .saves_inputs({1})
      .cpu({.name = "cpu.max_pool2d_backward", .run = cpu::max_pool2d_backward})
      .done();
}

}  // namespace ops
}  // namespace tenon
