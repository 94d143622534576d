#include "tensor/rules/pool_rules.h"

#include "tensor/calls/window.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {
namespace {

Shape pooled_shape(std::string_view op, const Shape& input, const Pool2dAttrs& attrs) {
  require_at_least(op, "kernel_size", attrs.kernel_size, 1);
  require_at_least(op, "stride", attrs.stride, 1);
  require_at_least(op, "padding", attrs.padding, 0);
  TENON_CHECK(input.rank() == 4, ShapeError, "[{}] input {}; needed (N, C, H, W)", op,
              input.to_string());
  Shape output{input[0], input[1]};
  for (std::size_t i = 0; i < 2; ++i) {
    // A window wholly in the padding would be the extremum of nothing.
    TENON_CHECK(attrs.padding[i] <= attrs.kernel_size[i] / 2, ValueError,
                "[{}] padding {} of a window of {}; needed at most half the window", op,
                attrs.padding[i], attrs.kernel_size[i]);
    output.push_back(window_positions(op, input[2 + static_cast<int>(i)], attrs.kernel_size[i],
                                      attrs.stride[i], attrs.padding[i], /*dilation=*/1));
  }
  return output;
}

}  // namespace

Pool2dAttrs pool_attrs(const Size2& kernel_size, const Size2& stride, const Size2& padding) {
  const auto list = [](const Size2& size) { return std::vector(size.begin(), size.end()); };
  return {list(kernel_size), list(stride), list(padding)};
}

Pool2dBackwardAttrs pool_backward_attrs(const Pool2dAttrs& attrs, const Shape& shape) {
  return {attrs.kernel_size, attrs.stride, attrs.padding, shape};
}

Pool2dAttrs pool_forward_attrs(const Pool2dBackwardAttrs& attrs) {
  return {attrs.kernel_size, attrs.stride, attrs.padding};
}

TensorSpec infer_pool(const InferContext& context) {
  require_floating(context, 0);
  TensorSpec output = context[0];
  output.shape =
      pooled_shape(context.op().name, context[0].shape, context.attributes<Pool2dAttrs>());
  return output;
}

TensorSpec infer_pool_backward(const InferContext& context) {
  require_floating(context, 0);
  const auto& attrs = context.attributes<Pool2dBackwardAttrs>();
  const Shape expected = pooled_shape(context.op().name, attrs.shape, pool_forward_attrs(attrs));
  const Shape& grad = context[0].shape;
  bool fits = grad.rank() == 4;
  for (int axis = 0; fits && axis < 4; ++axis) fits = unify(grad[axis], expected[axis]);
  TENON_CHECK(fits, ShapeError, "[{}] grad {}; needed {}", context.op().name, grad.to_string(),
              expected.to_string());
  TensorSpec result = context[0];
  result.shape = attrs.shape;
  return result;
}

}  // namespace tenon::ops
