// narrow_backward: the gradient of narrow, a range of one axis with zeros around it.
#include <algorithm>
#include <cstring>

#include "tensor/cpu/copy.h"
#include "tensor/ops/indexing_attributes.h"
#include "tensor/parallel.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {

Tensor narrow_backward(const Tensor& gradient, std::int64_t dim, const Dim& start,
                       const Dim& size) {
  static const Op& op = get_op("narrow_backward");
  return apply1(op, {gradient}, NarrowBackwardAttrs{dim, start, size});
}

namespace {

std::vector<TensorSpec> infer_narrow_backward(const InferContext& context) {
  const auto& attrs = context.attributes<NarrowBackwardAttrs>();
  Shape shape = context[0].shape;
  TENON_CHECK(shape.rank() > 0, ShapeError,
              "[narrow_backward] the gradient is a scalar; needed an axis");
  const auto axis = static_cast<int>(normalize_axis("narrow_backward", attrs.dim, shape.rank()));
  TENON_CHECK(Dim(0) <= attrs.start && shape[axis] <= attrs.size - attrs.start, ShapeError,
              "[narrow_backward] the gradient {} from {} along axis {}; there are {} elements",
              shape.to_string(), attrs.start.to_string(), axis, attrs.size.to_string());
  shape[axis] = attrs.size;
  return with_shape(context[0], std::move(shape));
}

std::vector<Tensor> vjp_narrow_backward(const VjpContext& call) {
  const auto& attrs = call.attributes<NarrowBackwardAttrs>();
  const Shape& shape = call.input_spec(0).shape;
  const auto axis = static_cast<int>(normalize_axis("narrow_backward", attrs.dim, shape.rank()));
  return {narrow(call.cotangent(0), axis, attrs.start, shape[axis])};
}

void run_narrow_backward(const KernelArgs& args) {
  const TensorView& gradient = args.inputs[0];
  TensorView slice = args.outputs[0];
  const auto& attrs = args.attributes<NarrowBackwardAttrs>();
  const auto axis = static_cast<int>(attrs.dim < 0 ? attrs.dim + slice.rank() : attrs.dim);
  const auto element = static_cast<std::int64_t>(size_of(slice.dtype));
  const std::int64_t line = slice.strides[axis] * element;
  const std::int64_t row = slice.sizes[axis] * line;
  const std::int64_t begin = attrs.start.value() * line;
  const std::int64_t end = begin + gradient.sizes[axis] * line;
  auto* data = static_cast<char*>(slice.data);
  const std::int64_t bytes = slice.numel() * element;
  if (bytes == 0) return;

  constexpr std::int64_t kGrainBytes = 1 << 17;
  parallel_ranges(bytes / row, std::max<std::int64_t>(1, kGrainBytes / row),
                  [&](std::int64_t first, std::int64_t last) {
                    for (char* at = data + first * row; at < data + last * row; at += row) {
                      std::memset(at, 0, static_cast<std::size_t>(begin));
                      std::memset(at + end, 0, static_cast<std::size_t>(row - end));
                    }
                  });
  slice.data = data + begin;
  slice.sizes[axis] = gradient.sizes[axis];
  cpu::copy_strided(gradient, slice);
}

}  // namespace

Op define_narrow_backward() {
  return OpBuilder("narrow_backward")
      .doc("Zeros of size elements along axis dim, with gradient from element start on.")
      .operand("gradient")
      .infer(infer_narrow_backward)
      .vjp(vjp_narrow_backward)
      .cpu({"cpu.narrow_backward", run_narrow_backward, nullptr, any_layout, false})
      .done();
}

}  // namespace tenon::ops
