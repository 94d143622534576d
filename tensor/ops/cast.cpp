// cast: another dtype.
#include "tensor/cpu/copy.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"

namespace tenon {

Tensor cast(const Tensor& input, DType dtype) {
  static const Op& op = get_op("cast");
  if (!ops::in_pattern() && input.dtype() == dtype) return input;
  return apply1(op, {input}, CastAttrs{dtype});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_cast(const InferContext& context) {
  return {{context.attributes<CastAttrs>().dtype, context[0].shape, context[0].device}};
}

void run_cast(const KernelArgs& args) { cpu::cast_strided(args.inputs[0], args.outputs[0]); }

}  // namespace

Op define_cast() {
  return OpBuilder("cast")
      .doc(
          "input converted to dtype: floats round to nearest even; a float becomes an integer by "
          "truncation, saturating, NaN as 0; anything but 0 is true.")
      .operand("input")
      .trait(Trait::elementwise)
      .trait(Trait::storage_dtypes)
      .infer(infer_cast)
      .cpu({"cpu.cast", run_cast, nullptr, any_layout, true})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {cast(call.cotangent(0), call.input_spec(0).dtype)};
      })
      .done();
}

}  // namespace ops
}  // namespace tenon
