// batch_norm_relu and batch_norm_add_relu: batch_norm, an optional residual and relu, as they follow a
// convolution, and their gradients. Results beside the first are batch_norm's.
#include <algorithm>

#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/batch_norm_rules.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor batch_norm_relu(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                       const Tensor& weight, const Tensor& bias, DropoutMode mode, double momentum,
                       double eps) {
  static const Op& op = get_op("batch_norm_relu");
  const Tensor operands[] = {input, running_mean, running_var, weight, bias};
  return ops::call_batch_norm(op, operands, {mode, momentum, eps});
}

Tensor batch_norm_add_relu(const Tensor& input, const Tensor& running_mean,
                           const Tensor& running_var, const Tensor& weight, const Tensor& bias,
                           const Tensor& residual, DropoutMode mode, double momentum, double eps) {
  static const Op& op = get_op("batch_norm_add_relu");
  const Tensor operands[] = {input, running_mean, running_var, weight, bias, residual};
  return ops::call_batch_norm(op, operands, {mode, momentum, eps});
}

namespace ops {
namespace {

/// Operands of the forward ops.
enum Operand { kInput, kRunningMean, kRunningVar, kWeight, kBias, kResidual };

std::vector<TensorSpec> infer_with_residual(const InferContext& context) {
  const std::vector<TensorSpec> outputs = infer_batch_norm(context);
  require_same_shape(context, kInput, kResidual);
  return outputs;
}

/// A pattern knows only how many results there may be at most.
std::vector<Tensor> norm_results(std::span<const Tensor> inputs, const Attrs& attrs) {
  static const Op& norm = get_op("batch_norm");
  constexpr std::size_t kResults = 5;
  std::vector<Tensor> outputs = apply(norm, inputs.first(kResidual), attrs);
  outputs.resize(std::min(outputs.size(), kResults));
  return outputs;
}

std::vector<Tensor> decompose_relu(std::span<const Tensor> inputs, const Attrs& attrs) {
  std::vector<Tensor> outputs = norm_results(inputs, attrs);
  outputs[0] = relu(outputs[0]);
  return outputs;
}

std::vector<Tensor> decompose_add_relu(std::span<const Tensor> inputs, const Attrs& attrs) {
  std::vector<Tensor> outputs = norm_results(inputs, attrs);
  outputs[0] = relu(outputs[0] + inputs[kResidual]);
  return outputs;
}

std::vector<Attrs> patterns() {
  std::vector<Attrs> list;
  for (const DropoutMode mode : {DropoutMode::follow, DropoutMode::train, DropoutMode::eval}) {
    list.push_back(BatchNormAttrs{mode, Any(0), Any(1)});
  }
  return list;
}

std::vector<Tensor> vjp_relu(const VjpContext& call) {
  static const Op& backward = get_op("batch_norm_relu_backward");
  std::vector<Tensor> gradients(5);
  const DropoutMode mode = call.attributes<BatchNormAttrs>().mode;
  const BatchNormBackwardAttrs attrs{mode, call.needs(kInput), call.needs(kWeight),
                                     call.needs(kBias)};
  if (call.cotangent(0) && (attrs.input || attrs.weight || attrs.bias)) {
    const Tensor operands[] = {call.cotangent(0),   call.input(kInput), call.output(0),
                               call.input(kWeight), call.input(kBias),  call.output(1),
                               call.output(2)};
    const std::vector<Tensor> found = apply(backward, operands, attrs);
    auto next = found.begin();
    if (attrs.input) gradients[kInput] = *next++;
    if (attrs.weight) gradients[kWeight] = *next++;
    if (attrs.bias) gradients[kBias] = *next++;
  }
  gradients[kInput] = add_statistics_gradient(call, gradients[kInput], mode);
  return gradients;
}

std::vector<Tensor> vjp_add_relu(const VjpContext& call) {
  static const Op& backward = get_op("batch_norm_add_relu_backward");
  std::vector<Tensor> gradients(6);
  const DropoutMode mode = call.attributes<BatchNormAttrs>().mode;
  const BatchNormAddBackwardAttrs attrs{
      {mode, call.needs(kInput), call.needs(kWeight), call.needs(kBias)}, call.needs(kResidual)};
  if (call.cotangent(0) && (attrs.input || attrs.weight || attrs.bias || attrs.residual)) {
    const Tensor operands[] = {call.cotangent(0),   call.input(kInput), call.output(0),
                               call.input(kWeight), call.output(1),     call.output(2)};
    const std::vector<Tensor> found = apply(backward, operands, attrs);
    auto next = found.begin();
    if (attrs.input) gradients[kInput] = *next++;
    if (attrs.weight) gradients[kWeight] = *next++;
    if (attrs.bias) gradients[kBias] = *next++;
    if (attrs.residual) gradients[kResidual] = *next++;
  }
  gradients[kInput] = add_statistics_gradient(call, gradients[kInput], mode);
  return gradients;
}

/// Operands (grad, input, output) of one shape; the gradients asked for of input, weight and bias.
std::vector<TensorSpec> infer_gradients(const InferContext& context,
                                        const BatchNormBackwardAttrs& attrs) {
  require_floating(context, 1);
  require_same_shape(context, 0, 1);
  require_same_shape(context, 1, 2);
  TENON_CHECK(context[1].shape.rank() >= 2, ShapeError, "[{}] input {}; needed (N, C, …)",
              context.op().name, context[1].shape.to_string());
  TensorSpec vector = context[1];
  vector.shape = Shape{context[1].shape[1]};
  std::vector<TensorSpec> outputs;
  if (attrs.input) outputs.push_back(context[1]);
  if (attrs.weight) outputs.push_back(vector);
  if (attrs.bias) outputs.push_back(vector);
  return outputs;
}

std::vector<TensorSpec> infer_relu_backward(const InferContext& context) {
  return infer_gradients(context, context.attributes<BatchNormBackwardAttrs>());
}

std::vector<TensorSpec> infer_add_relu_backward(const InferContext& context) {
  const auto& attrs = context.attributes<BatchNormAddBackwardAttrs>();
  std::vector<TensorSpec> outputs = infer_gradients(context, attrs);
  if (attrs.residual) outputs.push_back(context[1]);
  return outputs;
}

/// The gradients of the composition. `masked` is that of the relu's input.
std::vector<Tensor> decompose_gradients(const Tensor& masked, const Tensor& input,
                                        const Tensor& weight, const Tensor& mean,
                                        const Tensor& factor, const BatchNormBackwardAttrs& attrs) {
  const NormGradients found = batch_norm_backward(masked, input, weight, mean, factor, attrs);
  std::vector<Tensor> outputs;
  if (attrs.input) outputs.push_back(found.input);
  if (attrs.weight) outputs.push_back(found.weight);
  if (attrs.bias) outputs.push_back(found.bias);
  return outputs;
}

std::vector<Tensor> decompose_relu_gradients(std::span<const Tensor> inputs, const Attrs& attrs) {
  return decompose_gradients(relu_backward(inputs[0], inputs[2]), inputs[1], inputs[3], inputs[5],
                             inputs[6], attrs.as<BatchNormBackwardAttrs>());
}

std::vector<Tensor> decompose_add_relu_gradients(std::span<const Tensor> inputs,
                                                 const Attrs& attributes) {
  const auto& attrs = attributes.as<BatchNormAddBackwardAttrs>();
  const Tensor masked = relu_backward(inputs[0], inputs[2]);
  std::vector<Tensor> outputs =
      decompose_gradients(masked, inputs[1], inputs[3], inputs[4], inputs[5], attrs);
  if (attrs.residual) outputs.push_back(masked);
  return outputs;
}

}  // namespace

Op define_batch_norm_relu() {
  return OpBuilder("batch_norm_relu")
      .doc(
          "relu(batch_norm(input, …)), and batch_norm's further results. Where a kernel does both, "
          "16-bit floats are rounded once, at the end.")
      .operand("input")
      .optional("running_mean")
      .optional("running_var")
      .optional("weight")
      .optional("bias")
      .trait(Trait::update)  // of the running statistics
      .infer(infer_batch_norm)
      .decompose(decompose_relu)
      .pattern_attrs(patterns)
      .repeats(repeated_statistics)
      .vjp(vjp_relu)
      .saves_inputs({kInput, kWeight, kBias})
      .saves_outputs({0, 1, 2})
      .done();
}

Op define_batch_norm_relu_backward() {
  return OpBuilder("batch_norm_relu_backward")
      .doc(
          "The gradients of batch_norm_relu that were asked for, of input, weight and bias in this "
          "order, in the mode of the forward call. `output` is that call's: where it is not "
          "positive nothing passes; a kernel may find its sign in the other operands.")
      .operand("grad")
      .operand("input")
      .operand("output")
      .optional("weight")
      .optional("bias")
      .operand("mean")
      .operand("factor")
      .infer(infer_relu_backward)
      .decompose(decompose_relu_gradients)
      .done();
}

Op define_batch_norm_add_relu() {
  return OpBuilder("batch_norm_add_relu")
      .doc(
          "relu(batch_norm(input, …) + residual), and batch_norm's further results; the residual "
          "has "
          "the input's shape. Where a kernel does all, 16-bit floats are rounded once, at the end.")
      .operand("input")
      .optional("running_mean")
      .optional("running_var")
      .optional("weight")
      .optional("bias")
      .operand("residual")
      .trait(Trait::update)  // of the running statistics
      .infer(infer_with_residual)
      .decompose(decompose_add_relu)
      .pattern_attrs(patterns)
      .repeats(repeated_statistics)
      .vjp(vjp_add_relu)
      .saves_inputs({kInput, kWeight})
      .saves_outputs({0, 1, 2})
      .done();
}

Op define_batch_norm_add_relu_backward() {
  return OpBuilder("batch_norm_add_relu_backward")
      .doc(
          "The gradients of batch_norm_add_relu that were asked for, of input, weight, bias and "
          "residual in this order, in the mode of the forward call, whose result `output` is.")
      .operand("grad")
      .operand("input")
      .operand("output")
      .optional("weight")
      .operand("mean")
      .operand("factor")
      .infer(infer_add_relu_backward)
      .decompose(decompose_add_relu_gradients)
      .done();
}

}  // namespace ops
}  // namespace tenon
