// Axes and shapes of reductions.
#include "tensor/rules/reduction.h"

#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {

std::array<bool, kMaxRank> reduced_axes(std::string_view op, const std::vector<std::int64_t>& dim,
                                        int rank) {
  std::array<bool, kMaxRank> reduced{};
  if (dim.empty()) reduced.fill(true);
  for (std::int64_t axis : dim) {
    reduced[static_cast<std::size_t>(normalize_axis(op, axis, rank))] = true;
  }
  return reduced;
}

std::vector<TensorSpec> infer_reduction(const InferContext& context) {
  const auto& attrs = context.attributes<ReduceAttrs>();
  return infer_reduction(context, attrs.dim, attrs.keepdim);
}

std::vector<TensorSpec> infer_reduction(const InferContext& context,
                                        const std::vector<std::int64_t>& dim, bool keepdim) {
  const Shape& shape = context[0].shape;
  const auto reduced = reduced_axes(context.op().name, dim, shape.rank());
  Shape result;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (!reduced[static_cast<std::size_t>(axis)]) {
      result.push_back(shape[axis]);
    } else if (keepdim) {
      result.push_back(1);
    }
  }
  return with_shape(context[0], std::move(result));
}

std::vector<TensorSpec> infer_extremum(const InferContext& context) {
  const auto& attrs = context.attributes<ReduceAttrs>();
  const Shape& shape = context[0].shape;
  const auto reduced = reduced_axes(context.op().name, attrs.dim, shape.rank());
  for (int axis = 0; axis < shape.rank(); ++axis) {
    TENON_CHECK(!reduced[static_cast<std::size_t>(axis)] || detail::hint_of(shape[axis]) != 0,
                ShapeError,
                "[{}] axis {} of the input {} is empty; needed at least one element to reduce",
                context.op().name, axis, shape.to_string());
  }
  return infer_reduction(context);
}

Dim reduced_count(std::string_view op, const std::vector<std::int64_t>& dim, const Shape& shape) {
  const auto reduced = reduced_axes(op, dim, shape.rank());
  Dim count = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (reduced[static_cast<std::size_t>(axis)]) count *= shape[axis];
  }
  return count;
}

Tensor with_reduced_axes(std::string_view op, const Tensor& reduced, const Shape& input,
                         const std::vector<std::int64_t>& dim) {
  if (reduced.dim() == input.rank()) return reduced;  // keepdim
  const auto is_reduced = reduced_axes(op, dim, input.rank());
  Shape shape = input;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (is_reduced[static_cast<std::size_t>(axis)]) shape[axis] = 1;
  }
  return reshape(reduced, shape);
}

std::vector<Tensor> vjp_extremum(const VjpContext& call) {
  const std::string_view op = call.op().name;
  const TensorSpec& spec = call.input_spec(0);
  const auto& dim = call.attributes<ReduceAttrs>().dim;
  const Tensor value = with_reduced_axes(op, call.output(0), spec.shape, dim);
  const Tensor gradient = with_reduced_axes(op, call.cotangent(0), spec.shape, dim);
  const Tensor is_value = eq(call.input(0), value);
  // All that equal the extremum share its gradient; float16 could not hold their number.
  const DType dtype = accumulation_dtype(spec.dtype);
  const Tensor count = cast(sum(is_value, dim, /*keepdim=*/true), dtype);
  const Tensor share = cast(div(cast(gradient, dtype), count), spec.dtype);
  return {mul(cast(is_value, spec.dtype), share)};
}

Tensor call_reduction(const Op& op, const Tensor& input, const std::vector<std::int64_t>& dim,
                      bool keepdim) {
  return apply1(op, {input}, ReduceAttrs{axes_of(op.name, input, dim), keepdim});
}

}  // namespace tenon::ops
