// bias_gelu: gelu(input + bias), the activation behind a Linear whose bias was split off.
#include "tensor/cpu/elementwise.h"
#include "tensor/cpu/gelu.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/bias_rules.h"
#include "tensor/rules/gradients.h"

namespace tenon {

Tensor bias_gelu(const Tensor& input, const Tensor& bias, Approximate approximate) {
  static const Op& op = get_op("bias_gelu");
  return apply1(op, {input, bias}, GeluAttrs{approximate});
}

namespace ops {

Tensor bias_gelu_backward(const Tensor& grad, const Tensor& input, const Tensor& bias,
                          Approximate approximate) {
  static const Op& op = get_op("bias_gelu_backward");
  return apply1(op, {grad, input, bias}, GeluAttrs{approximate});
}

namespace {

Approximate form_of(const Attrs& attrs) { return attrs.as<GeluAttrs>().approximate; }

std::vector<TensorSpec> infer_bias_gelu(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  require_last_axis_vector(context, 0, 1);
  return {context[0]};
}

std::vector<TensorSpec> infer_bias_gelu_backward(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  require_same_shape(context, 0, 1);
  require_last_axis_vector(context, 1, 2);
  return {context[1]};
}

/// The bias as values of the type that it is computed in: every row reads it, one conversion will do.
template <class C>
TensorView widened(const TensorView& bias, std::vector<C>& values) {
  const cpu::ElementAccess& access = cpu::element_access(bias.dtype);
  if (access.is_value) return bias;
  values.resize(static_cast<std::size_t>(bias.numel()));
  access.load(bias.as<const char>(), bias.strides[0] * access.size, bias.numel(), values.data());
  return {values.data(), dtype_of<C>, kCpu, bias.sizes, {1}, true};
}

void run_bias_gelu(const KernelArgs& args) {
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    std::vector<C> wide;
    const TensorView inputs[] = {args.inputs[0], widened(args.inputs[1], wide)};
    const auto run = [&](const auto& f) {
      cpu::run_elementwise<C, C, C>(args.outputs[0], inputs, f);
    };
    if (form_of(*args.attrs) == Approximate::tanh) {
      run([](auto x, auto b) { return cpu::gelu_tanh(x + b); });
    } else {
      run([](auto x, auto b) { return cpu::gelu(x + b); });
    }
  });
}

void run_bias_gelu_backward(const KernelArgs& args) {
  cpu::Floats::dispatch(args.outputs[0].dtype, [&]<class C>() {
    std::vector<C> wide;
    const TensorView inputs[] = {args.inputs[0], args.inputs[1], widened(args.inputs[2], wide)};
    const auto run = [&](const auto& f) {
      cpu::run_elementwise<C, C, C, C>(args.outputs[0], inputs, f);
    };
    if (form_of(*args.attrs) == Approximate::tanh) {
      run([](auto g, auto x, auto b) { return g * cpu::gelu_tanh_slope(x + b); });
    } else {
      run([](auto g, auto x, auto b) { return g * cpu::gelu_slope(x + b); });
    }
  });
}

std::vector<Tensor> decompose(std::span<const Tensor> inputs, const Attrs& attrs) {
  return {gelu(inputs[0] + inputs[1], form_of(attrs))};
}

std::vector<Tensor> decompose_backward(std::span<const Tensor> inputs, const Attrs& attrs) {
  return {gelu_backward(inputs[0], inputs[1] + inputs[2], form_of(attrs))};
}

std::vector<Tensor> vjp_bias_gelu(const VjpContext& call) {
  const Tensor gradient =
      bias_gelu_backward(call.cotangent(0), call.input(0), call.input(1), form_of(call.attrs()));
  // [R, N] -> [N]
  return {gradient, call.needs(1) ? sum(as_rows(gradient), {0}) : Tensor()};
}

std::vector<Attrs> pattern_attrs() {
  return {GeluAttrs{Approximate::none}, GeluAttrs{Approximate::tanh}};
}

}  // namespace

Op define_bias_gelu() {
  return OpBuilder("bias_gelu")
      .doc(
          "gelu(input + bias, approximate): (…, N), (N) -> (…, N). 16-bit floats are rounded once, "
          "at the end.")
      .operand("input")
      .operand("bias")
      .trait(Trait::elementwise)
      .infer(infer_bias_gelu)
      .decompose(decompose)
      .pattern_attrs(pattern_attrs)
      .vjp(vjp_bias_gelu)
      .saves_inputs({0, 1})
      .cpu(cpu::elementwise_kernel("cpu.bias_gelu", run_bias_gelu))
      .done();
}

Op define_bias_gelu_backward() {
  return OpBuilder("bias_gelu_backward")
      .doc(
          "grad times the slope of gelu at input + bias, for the same approximate: (…, N), (…, N), "
          "(N) -> (…, N).")
      .operand("grad")
      .operand("input")
      .operand("bias")
      .trait(Trait::elementwise)
      .infer(infer_bias_gelu_backward)
      .decompose(decompose_backward)
      .cpu(cpu::elementwise_kernel("cpu.bias_gelu_backward", run_bias_gelu_backward))
      .done();
}

}  // namespace ops
}  // namespace tenon
