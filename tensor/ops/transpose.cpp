// transpose: two axes swapped.
#include <utility>

#include "tensor/cpu/copy.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor transpose(const Tensor& input, std::int64_t dim0, std::int64_t dim1) {
  static const Op& op = get_op("transpose");
  const std::int64_t a = ops::axis_of("transpose", input, dim0);
  const std::int64_t b = ops::axis_of("transpose", input, dim1);
  // In a pattern the order of a negative and a non-negative axis is not known yet.
  const bool comparable = (a < 0) == (b < 0);
  return apply1(op, {input},
                AxisPairAttrs{comparable && b < a ? std::vector{b, a} : std::vector{a, b}});
}

namespace ops {
namespace {

std::pair<int, int> swapped_axes(const Attrs& attrs, int rank) {
  const auto& dims = attrs.as<AxisPairAttrs>().dims;
  TENON_CHECK(dims.size() == 2, ShapeError, "[transpose] {} axes; needed 2", dims.size());
  return {static_cast<int>(normalize_axis("transpose", dims[0], rank)),
          static_cast<int>(normalize_axis("transpose", dims[1], rank))};
}

std::vector<TensorSpec> infer_transpose(const InferContext& context) {
  Shape shape = context[0].shape;
  const auto [a, b] = swapped_axes(context.attributes<AxisPairAttrs>(), shape.rank());
  if (a != b) std::swap(shape[a], shape[b]);
  return with_shape(context[0], std::move(shape));
}

std::optional<Layout> view_transpose(const Layout& input, const Extents&, const Attrs& attrs) {
  Layout result = input;
  const auto [a, b] = swapped_axes(attrs, input.rank());
  if (a != b) {
    std::swap(result.sizes[a], result.sizes[b]);
    std::swap(result.strides[a], result.strides[b]);
  }
  return result;
}

std::vector<Tensor> vjp_transpose(const VjpContext& call) {
  const auto& dims = call.attributes<AxisPairAttrs>().dims;
  return {transpose(call.cotangent(0), dims.at(0), dims.at(1))};  // its own inverse
}

}  // namespace

Op define_transpose() {
  return OpBuilder("transpose")
      .doc("input with the two axes in dims swapped.")
      .operand("input")
      .infer(infer_transpose)
      .view(view_transpose)
      .vjp(vjp_transpose)
      .cpu(cpu::view_kernel("cpu.transpose"))
      .done();
}

}  // namespace ops
}  // namespace tenon
