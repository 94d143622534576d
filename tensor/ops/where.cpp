// where: each element from one of two tensors, as a condition says.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor where(const Tensor& condition, const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("where");
  return apply1(op, {condition, input, other});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_where(const InferContext& context) {
  TENON_CHECK(context[0].dtype == DType::boolean, DTypeError,
              "[where] operand 'condition' is {}; needed bool", name(context[0].dtype));
  require_same_dtype(context, 1, 2);
  const Shape values = broadcast_shapes("where", context[1].shape, context[2].shape);
  Shape shape = broadcast_shapes("where", context[0].shape, values);
  return {{context[1].dtype, std::move(shape), context[0].device}};
}

void run_where(const KernelArgs& args) {
  cpu::AllDTypes::dispatch(args.outputs[0].dtype, [&]<class C>() {
    cpu::run_elementwise<C, bool, C, C>(
        args.outputs[0], args.inputs.first(3),
        [](bool condition, C x, C y) { return cpu::select(condition, x, y); });
  });
}

std::vector<Tensor> vjp_where(const VjpContext& call) {
  const Tensor grad = call.cotangent(0);
  const Tensor condition = call.input(0);
  std::vector<Tensor> gradients(3);
  if (call.needs(1)) {
    const Tensor zero = full({}, 0, {grad.dtype(), grad.device()});
    gradients[1] = sum_to(where(condition, grad, zero), call.input_spec(1).shape);
  }
  if (call.needs(2)) {
    gradients[2] = sum_to(masked_fill(grad, condition, 0), call.input_spec(2).shape);
  }
  return gradients;
}

}  // namespace

Op define_where() {
  return OpBuilder("where")
      .doc("input where condition is true, else other; all three broadcast.")
      .operand("condition")
      .operand("input")
      .operand("other")
      .trait(Trait::elementwise)
      .trait(Trait::storage_dtypes)
      .infer(infer_where)
      .cpu(cpu::elementwise_kernel("cpu.where", run_where))
      .saves_inputs({0})
      .vjp(vjp_where)
      .done();
}

}  // namespace ops
}  // namespace tenon
