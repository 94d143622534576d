// softmax along one axis.
#include "tensor/cpu/softmax.h"

#include "tensor/detail/check.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/infer_rules.h"
#include "tensor/ops/op_list.h"

namespace tenon {

Tensor softmax(const Tensor& input, std::int64_t dim) {
  static const Op& op = get_op("softmax");
  return apply1(op, {input}, AxisAttrs{ops::axis_of("softmax", input, dim)});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_softmax(const InferContext& context) {
  require_floating(context, 0);
  normalize_axis("softmax", context.attributes<AxisAttrs>().dim, context[0].shape.rank());
  return {context[0]};
}

}  // namespace

Op define_softmax() {
  return OpBuilder("softmax")
      .doc(
          "exp(x - max)/Σ exp(x - max) along dim, in float32 (float64 for float64). Terms below "
          "the "
          "smallest normal number count as 0; a row of -inf, or with NaN or +inf, gives NaN.")
      .operand("input")
      .infer(infer_softmax)
      .cpu({.name = "cpu.softmax",
            .run = cpu::softmax,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
