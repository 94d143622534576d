// square: each element times itself.
#include "tensor/cpu/copy.h"
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor square(const Tensor& input) {
  static const Op& op = get_op("square");
  return apply1(op, {input});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_square(const InferContext& context) {
  TensorSpec output = context[0];
  if (output.dtype == DType::boolean) output.dtype = DType::int64;
  return {output};
}

void run_square(const KernelArgs& args) {
  if (args.inputs[0].dtype == DType::boolean) {  // 0 and 1 are their own squares
    cpu::cast_strided(args.inputs[0], args.outputs[0]);
    return;
  }
  cpu::Numbers::dispatch(args.outputs[0].dtype, [&]<class C>() {
    cpu::run_elementwise<C, C>(args.outputs[0], args.inputs.first(1),
                               [](auto x) { return cpu::wrap_mul(x, x); });
  });
}

}  // namespace

Op define_square() {
  return unary_op("square", "x², elementwise; integers wrap around, bool gives int64.",
                  infer_square, cpu::elementwise_kernel("cpu.square", run_square))
      .saves_inputs({0})
      .vjp([](const VjpContext& call) -> std::vector<Tensor> {
        return {mul(mul(call.cotangent(0), 2), call.input(0))};
      })
      .range(ranges::nonnegative)
      .done();
}

}  // namespace ops
}  // namespace tenon
