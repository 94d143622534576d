// masked_fill: a number in place of the elements where a mask is true.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor masked_fill(const Tensor& input, const Tensor& mask, const Scalar& value) {
  static const Op& op = get_op("masked_fill");
  return apply1(op, {input, mask}, FillAttrs{value});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_masked_fill(const InferContext& context) {
  const TensorSpec& input = context[0];
  TENON_CHECK(context[1].dtype == DType::boolean, DTypeError,
              "[masked_fill] operand 'mask' is {}; needed bool", name(context[1].dtype));
  require_representable(context, context.attributes<FillAttrs>().value);
  Shape shape = broadcast_shapes("masked_fill", input.shape, context[1].shape);
  return {{input.dtype, std::move(shape), input.device}};
}

void run_masked_fill(const KernelArgs& args) {
  cpu::AllDTypes::dispatch(args.outputs[0].dtype, [&]<class C>() {
    C value{};
    load_number(args.attributes<FillAttrs>().value.number(), args.outputs[0].dtype, &value);
    cpu::run_elementwise<C, C, bool>(
        args.outputs[0], args.inputs.first(2),
        [value](C x, bool masked) { return cpu::select(masked, value, x); });
  });
}

std::vector<Tensor> vjp_masked_fill(const VjpContext& call) {
  const Tensor kept = masked_fill(call.cotangent(0), call.input(1), 0);
  return {sum_to(kept, call.input_spec(0).shape), Tensor()};
}

}  // namespace

Op define_masked_fill() {
  return OpBuilder("masked_fill")
      .doc("value where mask is true, else input; input and mask broadcast.")
      .operand("input")
      .operand("mask")
      .trait(Trait::elementwise)
      .trait(Trait::storage_dtypes)
      .infer(infer_masked_fill)
      .cpu(cpu::elementwise_kernel("cpu.masked_fill", run_masked_fill))
      .saves_inputs({1})
      .vjp(vjp_masked_fill)
      .range(ranges::filled)
      .done();
}

}  // namespace ops
}  // namespace tenon
