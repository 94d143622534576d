// cat: tensors one after another along an axis.
#include "tensor/cpu/copy.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor cat(const std::vector<Tensor>& tensors, std::int64_t dim) {
  static const Op& op = get_op("cat");
  TENON_CHECK(!tensors.empty() && tensors[0].defined(), ValueError,
              "[cat] no tensors; needed at least one");
  return apply(op, tensors, AxisAttrs{ops::axis_of("cat", tensors[0], dim)}).at(0);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_cat(const InferContext& context) {
  require_same_dtype(context);
  Shape shape = context[0].shape;
  TENON_CHECK(shape.rank() > 0, ShapeError, "[cat] the tensors are scalars; needed an axis");
  const std::int64_t dim = context.attributes<AxisAttrs>().dim;
  const auto axis = static_cast<int>(normalize_axis("cat", dim, shape.rank()));
  for (int i = 1; i < context.size(); ++i) {
    const Shape& next = context[i].shape;
    bool fits = next.rank() == shape.rank();
    for (int other = 0; fits && other < shape.rank(); ++other) {
      fits = other == axis || unify(shape[other], next[other]);
    }
    TENON_CHECK(
        fits, ShapeError,
        "[cat] tensor 0 has shape {} and tensor {} has {}; they may differ along axis {} only",
        context[0].shape.to_string(), i, next.to_string(), axis);
    shape[axis] += next[axis];
  }
  return with_shape(context[0], std::move(shape));
}

void run_cat(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const std::int64_t dim = args.attributes<AxisAttrs>().dim;
  const auto axis = static_cast<int>(dim < 0 ? dim + output.rank() : dim);
  TensorView piece = output;
  auto* at = static_cast<char*>(output.data);
  for (const TensorView& input : args.inputs) {
    piece.data = at;
    piece.sizes[axis] = input.sizes[axis];
    cpu::copy_strided(input, piece);
    at +=
        input.sizes[axis] * output.strides[axis] * static_cast<std::int64_t>(size_of(output.dtype));
  }
}

std::vector<Tensor> vjp_cat(const VjpContext& call) {
  const std::int64_t dim = call.attributes<AxisAttrs>().dim;
  const auto axis = static_cast<int>(normalize_axis("cat", dim, call.output_spec(0).shape.rank()));
  std::vector<Tensor> gradients(static_cast<std::size_t>(call.num_inputs()));
  Dim start = 0;
  for (int i = 0; i < call.num_inputs(); ++i) {
    const Dim& length = call.input_spec(i).shape[axis];
    if (call.needs(i)) {
      gradients[static_cast<std::size_t>(i)] = narrow(call.cotangent(0), axis, start, length);
    }
    start += length;
  }
  return gradients;
}

}  // namespace

Op define_cat() {
  return OpBuilder("cat")
      .doc("The tensors one after another along axis dim; other sizes must be equal.")
      .variadic("tensors")
      .trait(Trait::concatenation)
      .trait(Trait::storage_dtypes)
      .infer(infer_cat)
      .vjp(vjp_cat)
      .cpu({"cpu.cat", run_cat, nullptr, any_layout, true})
      .done();
}

}  // namespace ops
}  // namespace tenon
