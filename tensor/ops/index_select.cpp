// index_select: slices along one axis by index; and its gradient, which embedding shares.
#include "tensor/cpu/indexing.h"
#include "tensor/ops/indexing_attributes.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/index_rules.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor index_select(const Tensor& input, std::int64_t dim, const Tensor& index) {
  static const Op& op = get_op("index_select");
  return apply1(op, {input, ops::wide_index(index)},
                AxisAttrs{ops::axis_of("index_select", input, dim)});
}

namespace ops {

Tensor index_select_backward(const Tensor& gradient, const Tensor& index, std::int64_t dim,
                             const Dim& size) {
  static const Op& op = get_op("index_select_backward");
  return apply1(op, {gradient, index}, IndexSelectBackwardAttrs{dim, size});
}

namespace {

std::vector<TensorSpec> infer_index_select(const InferContext& context) {
  require_index(context, 1);
  TENON_CHECK(context[1].shape.rank() == 1, ShapeError,
              "[index_select] operand 'index' has shape {}; needed one axis",
              context[1].shape.to_string());
  Shape shape = context[0].shape;
  TENON_CHECK(shape.rank() > 0, ShapeError, "[index_select] the input is a scalar; needed an axis");
  const std::int64_t dim = context.attributes<AxisAttrs>().dim;
  shape[static_cast<int>(normalize_axis("index_select", dim, shape.rank()))] = context[1].shape[0];
  return with_shape(context[0], std::move(shape));
}

std::vector<Tensor> vjp_index_select(const VjpContext& call) {
  const Shape& shape = call.input_spec(0).shape;
  const std::int64_t dim = call.attributes<AxisAttrs>().dim;
  const auto axis = static_cast<int>(normalize_axis("index_select", dim, shape.rank()));
  return {index_select_backward(call.cotangent(0), call.input(1), axis, shape[axis]), {}};
}

std::vector<TensorSpec> infer_index_select_backward(const InferContext& context) {
  require_floating(context, 0);
  require_index(context, 1);
  const auto& attrs = context.attributes<IndexSelectBackwardAttrs>();
  Shape shape = context[0].shape;
  const auto axis =
      static_cast<int>(normalize_axis("index_select_backward", attrs.dim, shape.rank()));
  TENON_CHECK(
      shape.rank() > 0 && context[1].shape.rank() == 1 && unify(shape[axis], context[1].shape[0]),
      ShapeError,
      "[index_select_backward] the gradient {} along axis {} and the indices {}; needed as "
      "many slices as indices",
      shape.to_string(), axis, context[1].shape.to_string());
  shape[axis] = attrs.size;
  return with_shape(context[0], std::move(shape));
}

std::vector<Tensor> vjp_index_select_backward(const VjpContext& call) {
  const std::int64_t dim = call.attributes<IndexSelectBackwardAttrs>().dim;
  return {index_select(call.cotangent(0), dim, call.input(1)), {}};
}

}  // namespace

Op define_index_select() {
  return OpBuilder("index_select")
      .doc(
          "The slices of input along axis dim at index (1-D). An index out of range is an error on "
          "the CPU; on CUDA its slice is NaN, or 0 where there is no NaN.")
      .operand("input")
      .operand("index")
      .trait(Trait::storage_dtypes)
      .selects_by({.index = 1, .table = 0, .axis = axis_attribute})
      .infer(infer_index_select)
      .vjp(vjp_index_select)
      .saves_inputs({1})
      .cpu({"cpu.index_select", cpu::run_index_select, nullptr, nullptr, false})
      .done();
}

Op define_index_select_backward() {
  return OpBuilder("index_select_backward")
      .doc(
          "Zeros with size slices along axis dim, to slice index[i] of which slice i of gradient "
          "is "
          "added. An index out of range is an error on the CPU and adds nothing on CUDA.")
      .operand("gradient")
      .operand("index")
      .infer(infer_index_select_backward)
      .vjp(vjp_index_select_backward)
      .saves_inputs({1})
      .cpu({"cpu.index_select_backward", cpu::run_index_select_backward, nullptr, nullptr, false})
      .done();
}

}  // namespace ops
}  // namespace tenon
