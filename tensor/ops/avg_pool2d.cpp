// avg_pool2d, and its gradient.
#include "tensor/cpu/pool2d.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pool_rules.h"

namespace tenon {

Tensor avg_pool2d(const Tensor& input, Size2 kernel_size, Size2 stride, Size2 padding) {
  return ops::avg_pool2d_with(input, ops::pool_attrs(kernel_size, stride, padding));
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_avg_pool2d(const InferContext& context) {
  return {infer_pool(context)};
}

std::vector<TensorSpec> infer_avg_pool2d_backward(const InferContext& context) {
  return {infer_pool_backward(context)};
}

std::vector<Tensor> vjp_avg_pool2d(const VjpContext& call) {
  if (!call.needs(0)) return {Tensor()};
  return {avg_pool2d_backward(call.cotangent(0), pool_backward_attrs(call.attributes<Pool2dAttrs>(),
                                                                     call.input_spec(0).shape))};
}

/// Linear in grad, with avg_pool2d as its adjoint.
std::vector<Tensor> vjp_avg_pool2d_backward(const VjpContext& call) {
  if (!call.needs(0)) return {Tensor()};
  return {avg_pool2d_with(call.cotangent(0),
                          pool_forward_attrs(call.attributes<Pool2dBackwardAttrs>()))};
}

}  // namespace

Tensor avg_pool2d_with(const Tensor& input, const Pool2dAttrs& attrs) {
  static const Op& op = get_op("avg_pool2d");
  return apply1(op, {input}, attrs);
}

Tensor avg_pool2d_backward(const Tensor& grad, const Pool2dBackwardAttrs& attrs) {
  static const Op& op = get_op("avg_pool2d_backward");
  return apply1(op, {grad}, attrs);
}

Op define_avg_pool2d() {
  return OpBuilder("avg_pool2d")
      .doc("The mean of each window, padding counted as zeros: (N, C, H, W) -> (N, C, H', W').")
      .operand("input")
      .infer(infer_avg_pool2d)
      .vjp(vjp_avg_pool2d)
      .cpu({.name = "cpu.avg_pool2d", .run = cpu::avg_pool2d})
      .done();
}

Op define_avg_pool2d_backward() {
  return OpBuilder("avg_pool2d_backward")
      .doc("The gradient of avg_pool2d's input: grad divided equally over each window.")
      .operand("grad")
      .infer(infer_avg_pool2d_backward)
      .vjp(vjp_avg_pool2d_backward)
      .cpu({.name = "cpu.avg_pool2d_backward", .run = cpu::avg_pool2d_backward})
      .done();
}

}  // namespace ops
}  // namespace tenon
