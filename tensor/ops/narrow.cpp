// narrow: a range of one axis.
#include "tensor/cpu/copy.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor narrow(const Tensor& input, std::int64_t dim, const Dim& start, const Dim& length) {
  static const Op& op = get_op("narrow");
  if (ops::in_pattern()) return apply1(op, {input}, NarrowAttrs{dim, start, length});
  const std::int64_t axis = ops::axis_of("narrow", input, dim);
  const bool from_end = start.is_constant() && start.value() < 0 && input.dim() > 0;
  const Dim first = from_end ? input.size(axis) + start : start;
  return apply1(op, {input}, NarrowAttrs{axis, first, length});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_narrow(const InferContext& context) {
  const TensorSpec& input = context[0];
  const auto& attrs = context.attributes<NarrowAttrs>();
  TENON_CHECK(input.shape.rank() > 0, ShapeError, "[narrow] the input is a scalar; needed an axis");
  const auto axis = static_cast<int>(normalize_axis("narrow", attrs.dim, input.shape.rank()));
  const Dim& size = input.shape[axis];
  const Dim zero = 0;
  TENON_CHECK(zero <= attrs.start && attrs.start <= size && zero <= attrs.length &&
                  attrs.length <= size - attrs.start,
              ShapeError,
              "[narrow] {} elements from {} along axis {} of the input {}; it has {} there",
              attrs.length.to_string(), attrs.start.to_string(), axis, input.shape.to_string(),
              size.to_string());
  Shape shape = input.shape;
  shape[axis] = attrs.length;
  return with_shape(input, std::move(shape));
}

std::optional<Layout> view_narrow(const Layout& input, const Extents& sizes, const Attrs& attrs) {
  const auto& narrow = attrs.as<NarrowAttrs>();
  const auto axis = static_cast<int>(narrow.dim < 0 ? narrow.dim + input.rank() : narrow.dim);
  return Layout{sizes, input.strides, input.offset + narrow.start.value() * input.strides[axis]};
}

std::vector<Tensor> vjp_narrow(const VjpContext& call) {
  const auto& attrs = call.attributes<NarrowAttrs>();
  const Shape& shape = call.input_spec(0).shape;
  const auto axis = static_cast<int>(normalize_axis("narrow", attrs.dim, shape.rank()));
  return {narrow_backward(call.cotangent(0), axis, attrs.start, shape[axis])};
}

}  // namespace

Op define_narrow() {
  return OpBuilder("narrow")
      .doc("length elements from start along axis dim.")
      .operand("input")
      .infer(infer_narrow)
      .view(view_narrow)
      .vjp(vjp_narrow)
      .cpu(cpu::view_kernel("cpu.narrow"))
      .done();
}

}  // namespace ops
}  // namespace tenon
