// randperm: the numbers from 0 on in random order.
#include "tensor/calls/random_call.h"
#include "tensor/cpu/random.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

void check_randperm(const Op& op, const Dim& n, DType dtype) {
  if (n.is_constant() && n.value() > 0) ops::check_integers(op, 0, n.value() - 1, dtype);
}

}  // namespace

Tensor randperm(const Dim& n, TensorOptions options, Generator* generator) {
  static const Op& op = get_op("randperm");
  if (!ops::in_pattern()) check_randperm(op, n, options.dtype);
  return ops::draw_tensor(op, RandomTensorAttrs{Shape{n}, options.dtype, options.device},
                          generator);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_randperm(const InferContext& context) {
  const auto& attrs = context.attributes<RandomTensorAttrs>();
  TENON_CHECK(attrs.shape.rank() == 1, ShapeError, "[randperm] shape {}; needed one axis",
              attrs.shape.to_string());
  check_randperm(context.op(), attrs.shape[0], attrs.dtype);
  return random_tensor_spec(context, attrs);
}

}  // namespace

Op define_randperm() {
  return OpBuilder("randperm")
      .doc(
          "0, 1, …, n-1 in the order of 64 random bits each, a function of (seed, forward, site, "
          "element): each order as likely. A new one at each forward, in evaluation too.")
      .trait(Trait::random)
      .infer(infer_randperm)
      .not_differentiable()
      .cpu({.name = "cpu.randperm", .run = cpu::randperm})
      .done();
}

}  // namespace ops
}  // namespace tenon
