// view: the same elements of the same memory with another shape.
#include "tensor/cpu/copy.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

/// ShapeError where the strides of a tensor with data cannot show it with this shape.
void require_viewable(const Tensor& input, const Shape& shape) {
  Extents sizes;
  for (const Dim& size : shape) sizes.push_back(size.value());
  const Extents& strides = input.layout().strides;
  TENON_CHECK(ops::reshape_layout(input.layout(), sizes).has_value(), ShapeError,
              "[view] shape {} of the input {}, which has strides {}: that needs a copy; call "
              "reshape, or contiguous first",
              shape.to_string(), input.shape().to_string(),
              to_string(AttrValue(std::vector(strides.begin(), strides.end()))));
}

}  // namespace

Tensor view(const Tensor& input, const Shape& shape) {
  static const Op& op = get_op("view");
  if (ops::in_pattern()) return apply1(op, {input}, ShapeAttrs{shape});
  const Shape resolved = ops::resolve_reshape("view", input.shape(), shape);
  if (input.is_eager()) require_viewable(input, resolved);
  return apply1(op, {input}, ShapeAttrs{resolved});
}

namespace ops {

Op define_view() {
  return OpBuilder("view")
      .doc(
          "input with another shape and the same elements in row-major order, without a copy; "
          "where strides forbid that, an error.")
      .operand("input")
      .infer(infer_reshape)
      .view(view_reshape)
      .vjp(vjp_reshape)
      .cpu(cpu::view_kernel("cpu.view"))
      .done();
}

}  // namespace ops
}  // namespace tenon
