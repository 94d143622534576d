// randint: integers from a range.
#include "tensor/calls/random_call.h"
#include "tensor/cpu/random.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

/// Bounds that are sizes of inputs are checked when they are known.
void check_randint(const Op& op, const Dim& low, const Dim& high, DType dtype) {
  if (!low.is_constant() || !high.is_constant()) return;
  TENON_CHECK(low.value() < high.value(), ValueError, "[{}] from {} to {}; needed low < high",
              op.name, low.value(), high.value());
  ops::check_integers(op, low.value(), high.value() - 1, dtype);
}

}  // namespace

Tensor randint(const Dim& low, const Dim& high, const Shape& shape, TensorOptions options,
               Generator* generator) {
  static const Op& op = get_op("randint");
  if (!ops::in_pattern()) check_randint(op, low, high, options.dtype);
  return ops::draw_tensor(op, RandintAttrs{{shape, options.dtype, options.device}, low, high},
                          generator);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_randint(const InferContext& context) {
  const auto& attrs = context.attributes<RandintAttrs>();
  check_randint(context.op(), attrs.low, attrs.high, attrs.dtype);
  return random_tensor_spec(context, attrs);
}

}  // namespace

Op define_randint() {
  return OpBuilder("randint")
      .doc(
          "Integers from low to high - 1, each as likely up to 2^-64·(high - low), a function of "
          "(seed, forward, site, element). New ones at each forward, in evaluation too.")
      .trait(Trait::random)
      .infer(infer_randint)
      .not_differentiable()
      .cpu({.name = "cpu.randint", .run = cpu::randint})
      .done();
}

}  // namespace ops
}  // namespace tenon
