// linear_cross_entropy: the loss of a classifier's last layer without keeping its logits. Where
// gradients are recorded another op computes the loss and, from the same logits, the gradients that a
// loss gradient of 1 gives; backward has only to scale them.
#include "tensor/cpu/cross_entropy.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/cross_entropy_rules.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor linear_cross_entropy(const Tensor& input, const Tensor& weight, const Tensor& target,
                            const CrossEntropyOptions& options) {
  static const Op& op = get_op("linear_cross_entropy");
  return apply1(op, {input, weight, target},
                ops::cross_entropy_attrs("linear_cross_entropy", options));
}

namespace ops {
namespace {

/// What losses are computed in.
DType loss_dtype(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

TensorSpec infer_loss(const InferContext& context) {
  const std::string& op = context.op().name;
  require_floating(context, 0);
  require_same_dtype(context, 0, 1);
  TENON_CHECK(context[2].dtype == DType::int64, DTypeError,
              "[{}] operand 'target' is {}; needed class indices in int64", op,
              name(context[2].dtype));
  const Shape &input = context[0].shape, &weight = context[1].shape, &target = context[2].shape;
  const bool ranks = input.rank() == 2 && weight.rank() == 2 && target.rank() == 1;
  TENON_CHECK(ranks && unify(input[1], weight[1]) && unify(input[0], target[0]), ShapeError,
              "[{}] input {}, weight {} and target {}; needed (R, K), (C, K) and (R)", op,
              input.to_string(), weight.to_string(), target.to_string());
  TENON_CHECK(context.attributes<CrossEntropyAttrs>().reduction != Reduction::none, ValueError,
              "[{}] reduction 'none'; needed mean or sum", op);
  return {loss_dtype(context[0].dtype), {}, context[0].device};
}

std::vector<TensorSpec> infer_linear_cross_entropy(const InferContext& context) {
  return {infer_loss(context)};
}

std::vector<TensorSpec> infer_with_gradients(const InferContext& context) {
  return {infer_loss(context), context[0], context[1]};
}

CrossEntropyOptions options_of(const CrossEntropyAttrs& attrs) {
  return {attrs.ignore_index, attrs.reduction, attrs.label_smoothing};
}

std::vector<Tensor> decompose_linear_cross_entropy(std::span<const Tensor> inputs,
                                                   const Attrs& attrs) {
  const Tensor logits = linear(inputs[0], inputs[1]);  // (R, C)
  return {cross_entropy(cast(logits, loss_dtype(logits.dtype())), inputs[2],
                        options_of(attrs.as<CrossEntropyAttrs>()))};
}

/// The logits' gradient for a loss gradient of 1, in the loss's dtype.
Tensor logits_gradient(const Tensor& logits, const Tensor& target, const CrossEntropyAttrs& attrs) {
  return cross_entropy_backward(full({}, 1, {logits.dtype(), logits.device()}), logits, target,
                                attrs);
}

std::vector<Tensor> decompose_with_gradients(std::span<const Tensor> inputs, const Attrs& attrs) {
  const Tensor &input = inputs[0], &weight = inputs[1], &target = inputs[2];
  const auto& a = attrs.as<CrossEntropyAttrs>();
  const DType dtype = input.dtype();
  const Tensor logits = cast(linear(input, weight), loss_dtype(dtype));            // (R, C)
  const Tensor gradient = cast(logits_gradient(logits, target, a), dtype);         // (R, C)
  return {cross_entropy(logits, target, options_of(a)), matmul(gradient, weight),  // (R, K)
          matmul(transpose(gradient, 0, 1), input)};                               // (C, K)
}

/// gradient·factor; the gradient itself where the factor is a constant 1 of a trace, as it is where
/// backward starts from the loss.
Tensor scaled(const Tensor& gradient, const Tensor& factor) {
  const bool is_constant = !gradient.is_eager() && factor.is_eager();
  if (is_constant && factor.item() == 1) return gradient;
  return cast(mul(cast(gradient, factor.dtype()), factor), gradient.dtype());
}

Tensor sum_of(const Tensor& a, const Tensor& b) { return !a ? b : !b ? a : a + b; }

/// The gradients of input and weight that come by way of the gradients' cotangents u (R, K) and v
/// (C, K): with G the logits' gradient, those of Σ G·M, where M = u·weightᵀ + input·vᵀ.
std::vector<Tensor> second_derivatives(const VjpContext& call) {
  const auto& attrs = call.attributes<CrossEntropyAttrs>();
  const DType dtype = call.output_spec(0).dtype;
  const auto wide = [&](const Tensor& t) { return t ? cast(t, dtype) : t; };
  const Tensor input = wide(call.input(0)), weight = wide(call.input(1)), target = call.input(2);
  const Tensor u = wide(call.cotangent(1)), v = wide(call.cotangent(2));
  const Tensor logits = linear(input, weight);                     // (R, C)
  const Tensor gradient = logits_gradient(logits, target, attrs);  // (R, C)
  const Tensor products = sum_of(u ? linear(u, weight) : Tensor(), v ? linear(input, v) : Tensor());
  const Tensor one = full({}, 1, {dtype, logits.device()});
  const Tensor slope = cross_entropy_second_derivative(one, logits, target, products, attrs);
  // [R,C] x [C,K] -> [R,K]
  const Tensor by_input = sum_of(matmul(slope, weight), v ? matmul(gradient, v) : Tensor());
  // [R,C]^T x [R,K] -> [C,K]
  const Tensor by_weight = sum_of(matmul(transpose(slope, 0, 1), input),
                                  u ? matmul(transpose(gradient, 0, 1), u) : Tensor());
  return {cast(by_input, call.input_spec(0).dtype), cast(by_weight, call.input_spec(1).dtype)};
}

std::vector<Tensor> vjp_with_gradients(const VjpContext& call) {
  std::vector<Tensor> gradients(3);
  if (call.cotangent(1) || call.cotangent(2)) {
    const std::vector<Tensor> second = second_derivatives(call);
    for (std::size_t i = 0; i < 2; ++i) gradients[i] = second[i];
  }
  const Tensor cotangent = call.cotangent(0);
  if (!cotangent) return gradients;
  for (int i = 0; i < 2; ++i) {
    if (!call.needs(i)) continue;
    Tensor& gradient = gradients[static_cast<std::size_t>(i)];
    gradient = sum_of(gradient, scaled(call.output(i + 1), cotangent));
  }
  return gradients;
}

/// Products of (R, K) and (C, K): one forward, two more for the gradients.
double count_loss_flops(const KernelArgs& args) {
  const double product = 2.0 * static_cast<double>(args.inputs[0].numel()) *
                         static_cast<double>(args.inputs[1].size(0));
  return args.outputs.size() > 1 ? 3 * product : product;
}

bool linear_cross_entropy_accepts(int operand, const TensorView& view) {
  return operand < 2 || view.is_contiguous();
}

OpBuilder loss_op(const char* name, const char* doc) {
  return std::move(OpBuilder(name)
                       .doc(doc)
                       .operand("input")
                       .operand("weight")
                       .operand("target")
                       .selects_by({.index = 2, .table = 1, .ignored = ignored_target})
                       .flops(count_loss_flops));
}

}  // namespace

Op define_linear_cross_entropy() {
  return loss_op(
             "linear_cross_entropy",
             "cross_entropy(linear(input, weight), target): (R, K), (C, K), (R) -> (), float32 "
             "for 16-bit floats. Logits have the input's dtype, in workspace, and may be made a "
             "part of the rows at a time.")
      .infer(infer_linear_cross_entropy)
      .decompose(decompose_linear_cross_entropy)
      .recorded_as("linear_cross_entropy_with_gradients")
      .cpu({.name = "cpu.linear_cross_entropy",
            .run = cpu::linear_cross_entropy,
            .accepts = linear_cross_entropy_accepts,
            .workspace_bytes = cpu::linear_cross_entropy_workspace})
      .done();
}

Op define_linear_cross_entropy_with_gradients() {
  return loss_op(
             "linear_cross_entropy_with_gradients",
             "linear_cross_entropy and the gradients of input and weight for a loss gradient of "
             "1: (R, K), (C, K), (R) -> (), (R, K), (C, K). The logits' gradient is rounded to "
             "the input's dtype, that of weight is summed in float32.")
      .infer(infer_with_gradients)
      .decompose(decompose_with_gradients)
      .vjp(vjp_with_gradients)
      .saves_inputs({0, 1, 2})
      .saves_outputs({1, 2})
      .cpu({.name = "cpu.linear_cross_entropy",
            .run = cpu::linear_cross_entropy,
            .accepts = linear_cross_entropy_accepts,
            .workspace_bytes = cpu::linear_cross_entropy_workspace})
      .done();
}

}  // namespace ops
}  // namespace tenon
