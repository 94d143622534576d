// view: the same elements of the same memory with another shape.
#include "tensor/cpu/copy.h"
#include "tensor/detail/view_rules.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/infer_rules.h"

namespace tenon {

Tensor view(const Tensor& input, const Shape& shape) {
  static const Op& op = get_op("view");
  if (ops::in_pattern()) return apply1(op, {input}, ShapeAttrs{shape});
  return apply1(op, {input}, ShapeAttrs{ops::resolve_reshape("view", input.shape(), shape)});
}

namespace ops {

Op define_view() {
  return OpBuilder("view")
      .doc("input with another shape and the same elements in row-major order, without a copy; where strides forbid that, an error.")
      .operand("input")
      .infer(infer_reshape)
      .view(view_reshape)
      .cpu(cpu::view_kernel("cpu.view"))
      .done();
}

}  // namespace ops
}  // namespace tenon
