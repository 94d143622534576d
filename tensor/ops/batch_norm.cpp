// batch_norm, and its gradients. The op is pure: new running statistics are outputs, which the functional
// front end copies into place.
#include "tensor/cpu/batch_norm.h"

#include "tensor/calls/batch_norm_call.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/batch_norm_rules.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/norm_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor batch_norm(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                  const Tensor& weight, const Tensor& bias, DropoutMode mode, double momentum,
                  double eps) {
  static const Op& op = get_op("batch_norm");
  const Tensor operands[] = {input, running_mean, running_var, weight, bias};
  return ops::call_batch_norm(op, operands, {mode, momentum, eps});
}

namespace ops {

Tensor call_batch_norm(const Op& op, std::span<const Tensor> operands, BatchNormAttrs attrs) {
  Tensor running_mean = operands[1], running_var = operands[2];
  TENON_CHECK(running_mean.defined() == running_var.defined(), ValueError,
              "[{}] one of running_mean and running_var is missing; needed both or none", op.name);
  TENON_CHECK(running_mean.defined() || attrs.mode != DropoutMode::eval, ValueError,
              "[{}] evaluation needs running_mean and running_var", op.name);
  if (!running_mean.defined()) attrs.mode = DropoutMode::train;
  const std::vector<Tensor> outputs = apply(op, operands, attrs);
  // Where the mode is open, evaluation hands the old values back.
  const bool moves = resolved(attrs.mode) != DropoutMode::eval;
  if (running_mean.defined() && !in_pattern() && moves) {
    const NoGradGuard no_grad;
    running_mean.copy_(outputs[3]);
    running_var.copy_(outputs[4]);
  }
  return outputs[0];
}

bool uses_batch_statistics(DropoutMode mode, bool training, const ChannelSizes& sizes) {
  if (!uses_batch_statistics(mode, training) || sizes.count() == 0) return false;
  TENON_CHECK(sizes.channels == 0 || sizes.count() != 1, ValueError,
              "[batch_norm] one value a channel in training; needed at least two");
  return true;
}

namespace {

/// ShapeError unless operand i, where present, is (C).
void require_channels(const InferContext& context, int input, int i) {
  if (!context.has(i)) return;
  const Shape& shape = context[input].shape;
  const Shape& vector = context[i].shape;
  TENON_CHECK(vector.rank() == 1 && unify(vector[0], shape[1]), ShapeError,
              "[{}] input {} and {} {}; needed ({},)", context.op().name, shape.to_string(),
              context.op().operands[static_cast<std::size_t>(i)].name, vector.to_string(),
              shape[1].to_string());
}

void require_channel_axis(const InferContext& context, int input) {
  require_floating(context, input);
  TENON_CHECK(context[input].shape.rank() >= 2, ShapeError, "[{}] input {}; needed (N, C, …)",
              context.op().name, context[input].shape.to_string());
}

}  // namespace

std::vector<TensorSpec> infer_batch_norm(const InferContext& context) {
  require_channel_axis(context, 0);
  require_same_dtype(context);
  for (int i = 1; i < 5; ++i) require_channels(context, 0, i);
  TensorSpec vector = context[0];
  vector.shape = Shape{context[0].shape[1]};
  TensorSpec statistic = vector;
  statistic.dtype = accumulation_dtype(vector.dtype);
  std::vector<TensorSpec> outputs{context[0], statistic, statistic};
  if (context.has(1)) outputs.insert(outputs.end(), {vector, vector});
  return outputs;
}

namespace {

std::vector<TensorSpec> infer_batch_norm_backward(const InferContext& context) {
  const auto& attrs = context.attributes<BatchNormBackwardAttrs>();
  require_channel_axis(context, 1);
  require_same_shape(context, 0, 1);
  for (int i = 2; i < context.size(); ++i) require_channels(context, 1, i);
  TensorSpec vector = context[1];
  vector.shape = Shape{context[1].shape[1]};
  std::vector<TensorSpec> outputs;
  if (attrs.input) outputs.push_back(context[1]);
  if (attrs.weight) outputs.push_back(vector);
  if (attrs.bias) outputs.push_back(vector);
  return outputs;
}

/// Whether a call recorded now normalizes by the batch. Only derivatives of the gradient ask this, and
/// a trace, whose mode is open, has no answer.
bool batch_statistics_now(DropoutMode mode) {
  mode = resolved(mode);
  TENON_CHECK(
      mode != DropoutMode::follow, TraceError,
      "[batch_norm_backward] a second derivative under the tracer needs mode train or eval");
  return mode == DropoutMode::train;
}

/// (C) of the input's dtype as (1, C, 1, …).
Tensor along_channels(const Tensor& vector, const Tensor& input) {
  Shape shape;
  for (int axis = 0; axis < input.dim(); ++axis) shape.push_back(axis == 1 ? input.size(1) : 1);
  return reshape(cast(vector, input.dtype()), shape);
}

}  // namespace

Tensor add_statistics_gradient(const VjpContext& call, const Tensor& gradient, DropoutMode mode) {
  const bool of_statistics = call.cotangent(1) || call.cotangent(2);
  if (!of_statistics || !call.needs(0) || !batch_statistics_now(mode)) return gradient;
  const Tensor input = call.input(0);
  const Tensor factor = along_channels(call.output(2), input);
  const Tensor normalized = (input - along_channels(call.output(1), input)) * factor;
  const Tensor of_mean = along_channels(call.cotangent_or_zeros(1), input);
  const Tensor of_factor = along_channels(call.cotangent_or_zeros(2), input);
  const Dim count = input.numel() / input.size(1);
  const Tensor further = (of_mean - of_factor * square(factor) * normalized) / Scalar(count);
  return gradient ? gradient + further : further;
}

namespace {

std::vector<Tensor> vjp_batch_norm(const VjpContext& call) {
  std::vector<Tensor> gradients(5);
  const DropoutMode mode = call.attributes<BatchNormAttrs>().mode;
  if (call.cotangent(0)) {
    const NormGradients found =
        batch_norm_backward(call.cotangent(0), call.input(0), call.input(3), call.output(1),
                            call.output(2), {mode, call.needs(0), call.needs(3), call.needs(4)});
    gradients[0] = found.input;
    gradients[3] = found.weight;
    gradients[4] = found.bias;
  }
  gradients[0] = add_statistics_gradient(call, gradients[0], mode);
  return gradients;
}

std::vector<Tensor> decompose_batch_norm_backward(std::span<const Tensor> inputs,
                                                  const Attrs& attributes) {
  const auto& attrs = attributes.as<BatchNormBackwardAttrs>();
  const Tensor& grad = inputs[0];
  const Tensor& input = inputs[1];
  std::vector<std::int64_t> axes = {0};
  for (std::int64_t axis = 2; axis < input.dim(); ++axis) axes.push_back(axis);
  const Tensor factor = along_channels(inputs[4], input);
  const Tensor normalized = (input - along_channels(inputs[3], input)) * factor;
  const Tensor total = sum(grad, axes, /*keepdim=*/true);
  const Tensor products = sum(grad * normalized, axes, /*keepdim=*/true);
  std::vector<Tensor> outputs;
  if (attrs.input) {
    const Scalar count = input.numel() / input.size(1);
    const Tensor centred =
        batch_statistics_now(attrs.mode) ? grad - (total + normalized * products) / count : grad;
    outputs.push_back(centred * (inputs[2] ? factor * along_channels(inputs[2], input) : factor));
  }
  const Shape vector{input.size(1)};
  if (attrs.weight) outputs.push_back(reshape(products, vector));
  if (attrs.bias) outputs.push_back(reshape(total, vector));
  return outputs;
}

}  // namespace

int repeated_statistics(const Attrs& attrs, bool training, int output) {
  constexpr int kNewMean = 3;
  constexpr int kRunningMean = 1;
  const bool is_new = output >= kNewMean;
  if (!is_new || uses_batch_statistics(attrs.as<BatchNormAttrs>().mode, training)) return -1;
  return kRunningMean + output - kNewMean;
}

NormGradients batch_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                  const Tensor& mean, const Tensor& factor,
                                  const BatchNormBackwardAttrs& attrs) {
  static const Op& op = get_op("batch_norm_backward");
  if (!attrs.input && !attrs.weight && !attrs.bias) return {};
  const Tensor operands[] = {grad, input, weight, mean, factor};
  return named_gradients(apply(op, operands, attrs), attrs.input, attrs.weight, attrs.bias);
}

Op define_batch_norm() {
  return OpBuilder("batch_norm")
      .doc(
          "(x - mean)/√(var + eps)·weight + bias for each channel of (N, C, …). In training mean "
          "and "
          "population variance are the batch's, else the running ones. Further outputs: mean and "
          "1/√(var + eps) as used, and the new running statistics if there are old ones: in "
          "training "
          "moved by momentum towards the batch's mean and unbiased variance. An empty batch has no "
          "statistics: the running ones, or 0 and 1, serve and stay. One value a channel is "
          "refused in training.")
      .operand("input")
      .optional("running_mean")
      .optional("running_var")
      .optional("weight")
      .optional("bias")
      .trait(Trait::update)  // of the running statistics
      .infer(infer_batch_norm)
      .repeats(repeated_statistics)
      .vjp(vjp_batch_norm)
      .saves_inputs({0, 3})
      .saves_outputs({1, 2})
      .cpu({.name = "cpu.batch_norm", .run = cpu::batch_norm})
      .done();
}

Op define_batch_norm_backward() {
  return OpBuilder("batch_norm_backward")
      .doc(
          "The gradients of batch_norm that were asked for, of input, weight and bias in this "
          "order, "
          "in the mode of the forward call.")
      .operand("grad")
      .operand("input")
      .optional("weight")
      .operand("mean")
      .operand("factor")
      .infer(infer_batch_norm_backward)
      .decompose(decompose_batch_norm_backward)
      .cpu({.name = "cpu.batch_norm_backward", .run = cpu::batch_norm_backward})
      .done();
}

}  // namespace ops
}  // namespace tenon
