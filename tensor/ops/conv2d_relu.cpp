// conv2d_relu: relu(conv2d(input, weight, bias) + residual), what is left of a residual block's end when
// batch norm is part of the filters.
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor conv2d_relu(const Tensor& input, const Tensor& weight, const Tensor& bias,
                   const Tensor& residual, Size2 stride, Size2 padding, Size2 dilation,
                   std::int64_t groups) {
  static const Op& op = get_op("conv2d_relu");
  const auto list = [](const Size2& size) { return std::vector(size.begin(), size.end()); };
  return apply1(op, {input, weight, bias, residual},
                Conv2dAttrs{list(stride), list(padding), list(dilation), groups});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_conv2d_relu(const InferContext& context) {
  require_same_dtype(context);
  const TensorSpec* const operands[] = {&context[0], &context[1],
                                        context.has(2) ? &context[2] : nullptr};
  std::vector<TensorSpec> outputs =
      infer(get_op("conv2d"), operands, context.attributes<Conv2dAttrs>());
  TENON_CHECK(!context.has(3) || same_sizes(context[3].shape, outputs[0].shape), ShapeError,
              "[conv2d_relu] operand 'residual' {}; needed the shape {} of the convolution",
              context[3].shape.to_string(), outputs[0].shape.to_string());
  return outputs;
}

std::vector<Tensor> decompose_conv2d_relu(std::span<const Tensor> inputs, const Attrs& attrs) {
  const Tensor y = conv2d_with(inputs[0], inputs[1], inputs[2], attrs.as<Conv2dAttrs>());
  return {relu(inputs[3] ? y + inputs[3] : y)};
}

}  // namespace

Op define_conv2d_relu() {
  return OpBuilder("conv2d_relu")
      .doc(
          "relu(conv2d(input, weight, bias) + residual): (N, C, H, W), (O, C/groups, KH, KW), (O), "
          "(N, O, H', W') -> (N, O, H', W'). Where a kernel does all, 16-bit floats are rounded "
          "once, "
          "at the end.")
      .operand("input")
      .operand("weight")
      .optional("bias")
      .optional("residual")
      .infer(infer_conv2d_relu)
      .decompose(decompose_conv2d_relu)
      .done();
}

}  // namespace ops
}  // namespace tenon
