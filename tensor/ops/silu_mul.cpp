// silu_mul: silu(gate)·other, the gated activation of a feed-forward part (SwiGLU).
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/vector_math.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"

namespace tenon {

Tensor silu_mul(const Tensor& gate, const Tensor& other) {
  static const Op& op = get_op("silu_mul");
  return apply1(op, {gate, other});
}

namespace ops {

std::vector<Tensor> silu_mul_backward(const Tensor& grad, const Tensor& gate, const Tensor& other) {
  static const Op& op = get_op("silu_mul_backward");
  return apply(op, std::vector{grad, gate, other}, Attrs());
}

namespace {

void require_alike(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  for (int i = 1; i < context.size(); ++i) require_same_shape(context, 0, i);
}

std::vector<TensorSpec> infer_silu_mul(const InferContext& context) {
  require_alike(context);
  return {context[0]};
}

std::vector<TensorSpec> infer_silu_mul_backward(const InferContext& context) {
  require_alike(context);
  return {context[1], context[2]};
}

void run_silu_mul(const KernelArgs& args) {
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    cpu::run_elementwise<C, C, C>(args.outputs[0], args.inputs,
                                  [](auto x, auto y) { return x / (1 + cpu::exp(-x)) * y; });
  });
}

void run_silu_mul_backward(const KernelArgs& args) {
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    cpu::run_elementwise<C, C, C, C>(args.outputs[0], args.inputs, [](auto g, auto x, auto y) {
      const auto s = cpu::sigmoid(x);
      return g * y * (s * (1 + x * (1 - s)));
    });
    cpu::run_elementwise<C, C, C>(args.outputs[1], args.inputs.first(2),
                                  [](auto g, auto x) { return g * (x / (1 + cpu::exp(-x))); });
  });
}

std::vector<Tensor> decompose(std::span<const Tensor> inputs, const Attrs&) {
  return {silu(inputs[0]) * inputs[1]};
}

std::vector<Tensor> decompose_backward(std::span<const Tensor> inputs, const Attrs&) {
  const Tensor& grad = inputs[0];
  return {silu_backward(grad * inputs[2], inputs[1]), grad * silu(inputs[1])};
}

std::vector<Tensor> vjp_silu_mul(const VjpContext& call) {
  return silu_mul_backward(call.cotangent(0), call.input(0), call.input(1));
}

}  // namespace

Op define_silu_mul() {
  return OpBuilder("silu_mul")
      .doc(
          "silu(gate)·other, elementwise, for operands of one shape. 16-bit floats are rounded "
          "once, "
          "at the end.")
      .operand("gate")
      .operand("other")
      .trait(Trait::elementwise)
      .infer(infer_silu_mul)
      .decompose(decompose)
      .vjp(vjp_silu_mul)
      .saves_inputs({0, 1})
      .cpu(cpu::elementwise_kernel("cpu.silu_mul", run_silu_mul))
      .done();
}

Op define_silu_mul_backward() {
  return OpBuilder("silu_mul_backward")
      .doc(
          "The gradients of silu_mul by gate, grad·other·silu'(gate), and by other, "
          "grad·silu(gate).")
      .operand("grad")
      .operand("gate")
      .operand("other")
      .infer(infer_silu_mul_backward)
      .decompose(decompose_backward)
      .cpu(cpu::elementwise_kernel("cpu.silu_mul_backward", run_silu_mul_backward))
      .done();
}

}  // namespace ops
}  // namespace tenon
