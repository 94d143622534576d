// uniform: numbers from an interval.
#include "tensor/calls/random_call.h"
#include "tensor/cpu/random.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"

namespace tenon {

Tensor uniform(const Shape& shape, double low, double high, TensorOptions options,
               Generator* generator) {
  static const Op& op = get_op("uniform");
  if (!ops::in_pattern()) ops::check_uniform(low, high, options.dtype);
  return ops::draw_tensor(op, UniformAttrs{{shape, options.dtype, options.device}, low, high},
                          generator);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_uniform(const InferContext& context) {
  const auto& attrs = context.attributes<UniformAttrs>();
  check_uniform(attrs.low, attrs.high, attrs.dtype);
  return random_tensor_spec(context, attrs);
}

}  // namespace

Op define_uniform() {
  return OpBuilder("uniform")
      .doc(
          "Numbers from the real interval [low, high), rounded down to the dtype, a function of "
          "(seed, forward, site, element). New ones at each forward, in evaluation too.")
      .trait(Trait::random)
      .infer(infer_uniform)
      .not_differentiable()
      .cpu({.name = "cpu.uniform", .run = cpu::uniform})
      .done();
}

}  // namespace ops
}  // namespace tenon
