// permute: axes in another order.
#include "tensor/cpu/copy.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

/// Non-negative axes; ShapeError unless each of the tensor's axes is named once.
std::vector<std::int64_t> normalized_permutation(const Shape& shape,
                                                 std::vector<std::int64_t> dims) {
  const auto fail_unless = [&](bool good) {
    TENON_CHECK(good, ShapeError,
                "[permute] axes {} of the input {}; needed each of its {} axes once",
                to_string(AttrValue(dims)), shape.to_string(), shape.rank());
  };
  fail_unless(dims.size() == static_cast<std::size_t>(shape.rank()));
  std::vector<bool> seen(dims.size(), false);
  for (std::int64_t& dim : dims) {
    dim = ops::normalize_axis("permute", dim, shape.rank());
    fail_unless(!seen[static_cast<std::size_t>(dim)]);
    seen[static_cast<std::size_t>(dim)] = true;
  }
  return dims;
}

}  // namespace

Tensor permute(const Tensor& input, const std::vector<std::int64_t>& dims) {
  static const Op& op = get_op("permute");
  if (ops::in_pattern()) return apply1(op, {input}, AxesAttrs{dims});
  return apply1(op, {input}, AxesAttrs{normalized_permutation(input.shape(), dims)});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_permute(const InferContext& context) {
  const Shape& shape = context[0].shape;
  Shape result;
  for (std::int64_t dim : normalized_permutation(shape, context.attributes<AxesAttrs>().dims)) {
    result.push_back(shape[static_cast<int>(dim)]);
  }
  return with_shape(context[0], std::move(result));
}

std::optional<Layout> view_permute(const Layout& input, const Extents& sizes, const Attrs& attrs) {
  Layout result{sizes, {}, input.offset};
  for (std::int64_t dim : attrs.as<AxesAttrs>().dims) {
    result.strides.push_back(input.strides[static_cast<int>(dim < 0 ? dim + input.rank() : dim)]);
  }
  return result;
}

std::vector<Tensor> vjp_permute(const VjpContext& call) {
  const auto& dims = call.attributes<AxesAttrs>().dims;
  const int rank = call.input_spec(0).shape.rank();
  std::vector<std::int64_t> inverse(dims.size());
  for (std::size_t i = 0; i < dims.size(); ++i) {
    const std::int64_t axis = normalize_axis("permute", dims[i], rank);
    inverse[static_cast<std::size_t>(axis)] = static_cast<std::int64_t>(i);
  }
  return {permute(call.cotangent(0), inverse)};
}

}  // namespace

Op define_permute() {
  return OpBuilder("permute")
      .doc("Axis i of the result is axis dims[i] of input.")
      .operand("input")
      .infer(infer_permute)
      .view(view_permute)
      .vjp(vjp_permute)
      .cpu(cpu::view_kernel("cpu.permute"))
      .done();
}

}  // namespace ops
}  // namespace tenon
