// reshape: the same elements with another shape.
#include "tensor/cpu/copy.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"

namespace tenon {

Tensor reshape(const Tensor& input, const Shape& shape) {
  static const Op& op = get_op("reshape");
  if (ops::in_pattern()) return apply1(op, {input}, ShapeAttrs{shape});
  return apply1(op, {input}, ShapeAttrs{ops::resolve_reshape("reshape", input.shape(), shape)});
}

namespace ops {

Op define_reshape() {
  return OpBuilder("reshape")
      .doc(
          "input with another shape and the same elements in row-major order; a copy only where "
          "strides need one.")
      .operand("input")
      .infer(infer_reshape)
      .view(view_reshape)
      .vjp(vjp_reshape)
      .cpu(cpu::view_kernel("cpu.reshape"))
      .done();
}

}  // namespace ops
}  // namespace tenon
