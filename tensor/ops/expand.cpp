// expand: axes of size 1 repeated, and new leading axes, without copying.
#include "tensor/cpu/copy.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

/// The size of an axis that has `from` elements and shall have `to`, or nothing when it cannot.
std::optional<Dim> expanded_size(const Dim& from, const Dim& to) {
  if (to.same_as(-1)) return from;
  if (from.same_as(1)) return to;
  if (unify(from, to)) return to;
  if (!from.is_constant() && detail::hint_of(from) == 1 && from == Dim(1)) return to;
  return std::nullopt;
}

Shape resolve_expand(const Shape& input, const Shape& requested) {
  const int added = requested.rank() - input.rank();
  TENON_CHECK(added >= 0, ShapeError,
              "[expand] shape {} has fewer axes than the input {}; needed at least {}",
              requested.to_string(), input.to_string(), input.rank());
  Shape result = requested;
  for (int axis = 0; axis < requested.rank(); ++axis) {
    const Dim& to = requested[axis];
    const bool negative = to.is_constant() && to.value() < 0;
    TENON_CHECK(
        !negative || (axis >= added && to.value() == -1), ShapeError,
        "[expand] shape {} for the input {}; needed sizes >= 0, or -1 for an axis of the input",
        requested.to_string(), input.to_string());
    if (axis < added) continue;
    const std::optional<Dim> size = expanded_size(input[axis - added], to);
    TENON_CHECK(
        size.has_value(), ShapeError,
        "[expand] shape {} for the input {}: axis {} has size {}; only size 1 can become {}",
        requested.to_string(), input.to_string(), axis - added, input[axis - added].to_string(),
        to.to_string());
    result[axis] = *size;
  }
  return result;
}

}  // namespace

Tensor expand(const Tensor& input, const Shape& shape) {
  static const Op& op = get_op("expand");
  if (ops::in_pattern()) return apply1(op, {input}, ShapeAttrs{shape});
  return apply1(op, {input}, ShapeAttrs{resolve_expand(input.shape(), shape)});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_expand(const InferContext& context) {
  return with_shape(context[0],
                    resolve_expand(context[0].shape, context.attributes<ShapeAttrs>().shape));
}

std::optional<Layout> view_expand(const Layout& input, const Extents& sizes, const Attrs&) {
  Layout result{sizes, Extents::filled(sizes.size(), 0), input.offset};
  const int added = sizes.size() - input.rank();
  for (int axis = 0; axis < input.rank(); ++axis) {
    if (input.sizes[axis] == sizes[axis + added]) {
      result.strides[axis + added] = input.strides[axis];
    }
  }
  return result;
}

std::vector<Tensor> vjp_expand(const VjpContext& call) {
  return {sum_to(call.cotangent(0), call.input_spec(0).shape)};
}

}  // namespace

Op define_expand() {
  return OpBuilder("expand")
      .doc("input with axes of size 1 repeated, stride 0, up to shape; new axes come first.")
      .operand("input")
      .infer(infer_expand)
      .view(view_expand)
      .vjp(vjp_expand)
      .cpu(cpu::view_kernel("cpu.expand"))
      .done();
}

}  // namespace ops
}  // namespace tenon
