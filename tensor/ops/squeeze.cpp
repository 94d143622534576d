// squeeze: an axis of size 1 removed.
#include "tensor/cpu/copy.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor squeeze(const Tensor& input, std::int64_t dim) {
  static const Op& op = get_op("squeeze");
  if (ops::in_pattern()) return apply1(op, {input}, AxisAttrs{dim});
  const std::int64_t axis = ops::axis_of("squeeze", input, dim);
  // As in PyTorch an axis of another size stays; a trace records which it was.
  if (input.dim() == 0 || input.size(axis) != Dim(1)) return input;
  return apply1(op, {input}, AxisAttrs{axis});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_squeeze(const InferContext& context) {
  Shape shape = context[0].shape;
  TENON_CHECK(shape.rank() > 0, ShapeError, "[squeeze] the input is a scalar; needed an axis");
  const std::int64_t dim = context.attributes<AxisAttrs>().dim;
  const auto axis = static_cast<int>(normalize_axis("squeeze", dim, shape.rank()));
  TENON_CHECK(unify(shape[axis], 1), ShapeError,
              "[squeeze] axis {} of the input {} has size {}; needed 1", axis, shape.to_string(),
              shape[axis].to_string());
  shape.erase(axis);
  return with_shape(context[0], std::move(shape));
}

std::optional<Layout> view_squeeze(const Layout& input, const Extents& sizes, const Attrs& attrs) {
  Layout result{sizes, input.strides, input.offset};
  const std::int64_t dim = attrs.as<AxisAttrs>().dim;
  result.strides.erase(static_cast<int>(dim < 0 ? dim + input.rank() : dim));
  return result;
}

std::vector<Tensor> vjp_squeeze(const VjpContext& call) {
  return {unsqueeze(call.cotangent(0), call.attributes<AxisAttrs>().dim)};
}

}  // namespace

Op define_squeeze() {
  return OpBuilder("squeeze")
      .doc("input without axis dim, which has size 1.")
      .operand("input")
      .infer(infer_squeeze)
      .view(view_squeeze)
      .vjp(vjp_squeeze)
      .cpu(cpu::view_kernel("cpu.squeeze"))
      .done();
}

}  // namespace ops
}  // namespace tenon
