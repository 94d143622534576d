// randn: standard normal numbers.
#include "tensor/calls/random_call.h"
#include "tensor/cpu/random.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor randn(const Shape& shape, TensorOptions options, Generator* generator) {
  static const Op& op = get_op("randn");
  TENON_CHECK(is_floating(options.dtype), DTypeError,
              "[randn] dtype {}; needed float32, float64, float16 or bfloat16; randint draws "
              "integers",
              name(options.dtype));
  return ops::draw_tensor(op, RandomTensorAttrs{shape, options.dtype, options.device}, generator);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_randn(const InferContext& context) {
  return random_tensor_spec(context, context.attributes<RandomTensorAttrs>());
}

}  // namespace

Op define_randn() {
  return OpBuilder("randn")
      .doc(
          "Standard normal numbers, a function of (seed, forward, site, element): the Box-Muller "
          "transform in float64, rounded once. New ones at each forward, in evaluation too.")
      .trait(Trait::random)
      .infer(infer_randn)
      .not_differentiable()
      .cpu({.name = "cpu.randn", .run = cpu::randn})
      .done();
}

}  // namespace ops
}  // namespace tenon
