// unsqueeze: a new axis of size 1.
#include "tensor/cpu/copy.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"

namespace tenon {

Tensor unsqueeze(const Tensor& input, std::int64_t dim) {
  static const Op& op = get_op("unsqueeze");
  // The axis counts in the result, which has one more.
  const std::int64_t axis =
      ops::in_pattern() ? dim : ops::normalize_axis("unsqueeze", dim, input.dim() + 1);
  return apply1(op, {input}, AxisAttrs{axis});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_unsqueeze(const InferContext& context) {
  Shape shape = context[0].shape;
  const std::int64_t dim = context.attributes<AxisAttrs>().dim;
  shape.insert(static_cast<int>(normalize_axis("unsqueeze", dim, shape.rank() + 1)), 1);
  return with_shape(context[0], std::move(shape));
}

std::optional<Layout> view_unsqueeze(const Layout& input, const Extents& sizes,
                                     const Attrs& attrs) {
  const auto axis =
      static_cast<int>(normalize_axis("unsqueeze", attrs.as<AxisAttrs>().dim, input.rank() + 1));
  Layout result{sizes, input.strides, input.offset};
  result.strides.insert(axis, axis < input.rank() ? input.sizes[axis] * input.strides[axis] : 1);
  return result;
}

std::vector<Tensor> vjp_unsqueeze(const VjpContext& call) {
  // The axis counts in the result, as it does in the cotangent.
  return {squeeze(call.cotangent(0), call.attributes<AxisAttrs>().dim)};
}

}  // namespace

Op define_unsqueeze() {
  return OpBuilder("unsqueeze")
      .doc("input with a new axis of size 1 at dim, which counts in the result.")
      .operand("input")
      .infer(infer_unsqueeze)
      .view(view_unsqueeze)
      .vjp(vjp_unsqueeze)
      .cpu(cpu::view_kernel("cpu.unsqueeze"))
      .done();
}

}  // namespace ops
}  // namespace tenon
