// gather: elements along one axis, each by an index of its own; and its gradient.
#include "tensor/cpu/indexing.h"
#include "tensor/ops/indexing_attributes.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/index_rules.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor gather(const Tensor& input, std::int64_t dim, const Tensor& index) {
  static const Op& op = get_op("gather");
  return apply1(op, {input, ops::wide_index(index)}, AxisAttrs{ops::axis_of("gather", input, dim)});
}

namespace ops {

Tensor gather_backward(const Tensor& gradient, const Tensor& index, std::int64_t dim,
                       const Shape& shape) {
  static const Op& op = get_op("gather_backward");
  return apply1(op, {gradient, index}, GatherBackwardAttrs{dim, shape});
}

namespace {

/// ShapeError unless `index` has the rank of `input` and, beside axis `dim`, no larger sizes.
void require_gatherable(std::string_view op, const Shape& input, std::int64_t dim,
                        const Shape& index) {
  const std::int64_t axis = normalize_axis(op, dim, input.rank());
  bool fits = index.rank() == input.rank();
  for (int other = 0; fits && other < input.rank(); ++other) {
    fits = other == axis || index[other].same_as(input[other]) || index[other] <= input[other];
  }
  TENON_CHECK(fits, ShapeError,
              "[{}] indices {} for the input {}; needed as many axes, and sizes no larger than the "
              "input's beside axis {}",
              op, index.to_string(), input.to_string(), axis);
}

std::vector<TensorSpec> infer_gather(const InferContext& context) {
  require_index(context, 1);
  require_gatherable("gather", context[0].shape, context.attributes<AxisAttrs>().dim,
                     context[1].shape);
  return with_shape(context[0], context[1].shape);
}

std::vector<Tensor> vjp_gather(const VjpContext& call) {
  const Shape& shape = call.input_spec(0).shape;
  const std::int64_t dim = call.attributes<AxisAttrs>().dim;
  return {gather_backward(call.cotangent(0), call.input(1), dim, shape), {}};
}

std::vector<TensorSpec> infer_gather_backward(const InferContext& context) {
  require_floating(context, 0);
  require_index(context, 1);
  const auto& attrs = context.attributes<GatherBackwardAttrs>();
  bool fits = context[0].shape.rank() == context[1].shape.rank();
  for (int axis = 0; fits && axis < context[0].shape.rank(); ++axis) {
    fits = unify(context[0].shape[axis], context[1].shape[axis]);
  }
  TENON_CHECK(fits, ShapeError, "[gather_backward] a gradient {} for indices {}",
              context[0].shape.to_string(), context[1].shape.to_string());
  require_gatherable("gather_backward", attrs.shape, attrs.dim, context[1].shape);
  return with_shape(context[0], attrs.shape);
}

std::vector<Tensor> vjp_gather_backward(const VjpContext& call) {
  const std::int64_t dim = call.attributes<GatherBackwardAttrs>().dim;
  return {gather(call.cotangent(0), dim, call.input(1)), {}};
}

/// The indices are read in row-major order, the other operand through its strides.
bool accepts(int operand, const TensorView& view) { return operand == 0 || view.is_contiguous(); }

}  // namespace

Op define_gather() {
  return OpBuilder("gather")
      .doc(
          "Element (…, k, …) is input at (…, index[…, k, …], …) along axis dim. An index out of "
          "range is an error on the CPU and NaN, or 0 where there is no NaN, on CUDA.")
      .operand("input")
      .operand("index")
      .trait(Trait::storage_dtypes)
      .selects_by({.index = 1, .table = 0, .axis = axis_attribute})
      .infer(infer_gather)
      .vjp(vjp_gather)
      .saves_inputs({1})
      .cpu({"cpu.gather", cpu::run_gather, nullptr, accepts, false})
      .done();
}

Op define_gather_backward() {
  return OpBuilder("gather_backward")
      .doc(
          "Zeros of the given shape, to whose element (…, index[…, k, …], …) along axis dim "
          "element "
          "(…, k, …) of gradient is added. Out of range: as index_select_backward.")
      .operand("gradient")
      .operand("index")
      .infer(infer_gather_backward)
      .vjp(vjp_gather_backward)
      .saves_inputs({1})
      .cpu({"cpu.gather_backward", cpu::run_gather_backward, nullptr, accepts, false})
      .done();
}

}  // namespace ops
}  // namespace tenon
