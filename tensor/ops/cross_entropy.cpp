// cross_entropy of class indices, and its gradient.
#include "tensor/cpu/cross_entropy.h"

#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/cross_entropy_rules.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

Tensor cross_entropy_of_rows(const Tensor& input, const Tensor& target,
                             const CrossEntropyAttrs& attrs) {
  static const Op& op = get_op("cross_entropy");
  return apply1(op, {input, target}, attrs);
}

/// The target's shape: the input's without its classes, which are axis 1, or axis 0 of (C).
Shape shape_without_classes(const Shape& input) {
  Shape shape = input;
  shape.erase(input.rank() == 1 ? 0 : 1);
  return shape;
}

}  // namespace

std::string_view enum_name(Reduction reduction) {
  switch (reduction) {
    case Reduction::none: return "none";
    case Reduction::mean: return "mean";
    default: return "sum";
  }
}

Reduction parse_enum(Reduction, std::string_view text) {
  for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
    if (text == enum_name(reduction)) return reduction;
  }
  detail::fail<ValueError>("reduction '{}'; needed none, mean or sum", text.substr(0, 80));
}

Tensor cross_entropy(const Tensor& input, const Tensor& target,
                     const CrossEntropyOptions& options) {
  const CrossEntropyAttrs attrs = ops::cross_entropy_attrs("cross_entropy", options);
  if (ops::in_pattern()) return cross_entropy_of_rows(input, target, attrs);  // ranks are unknown
  const Shape& shape = input.shape();
  TENON_CHECK(shape.rank() >= 1, ShapeError,
              "[cross_entropy] input {}; needed (C), (N, C) or (N, C, d…)", shape.to_string());
  const Shape losses = shape_without_classes(shape);
  bool fits = target.dim() == losses.rank();
  for (int axis = 0; fits && axis < losses.rank(); ++axis) {
    fits = unify(target.shape()[axis], losses[axis]);
  }
  TENON_CHECK(fits, ShapeError, "[cross_entropy] input {} and target {}; needed the target {}",
              shape.to_string(), target.shape().to_string(), losses.to_string());
  if (shape.rank() == 2) return cross_entropy_of_rows(input, target, attrs);

  const Dim rows = losses.numel();
  Tensor logits = input;
  if (shape.rank() > 2) {  // (N, C, d…) -> (N, d…, C)
    std::vector<std::int64_t> order = {0};
    for (std::int64_t axis = 2; axis < shape.rank(); ++axis) order.push_back(axis);
    order.push_back(1);
    logits = permute(input, order);
  }
  logits = reshape(logits, {rows, shape[shape.rank() == 1 ? 0 : 1]});
  const Tensor loss = cross_entropy_of_rows(logits, reshape(target, {rows}), attrs);
  return attrs.reduction == Reduction::none ? reshape(loss, losses) : loss;
}

namespace ops {
namespace {

void require_logits_and_target(const InferContext& context, int logits) {
  const std::string& op = context.op().name;
  const TensorSpec& target = context[logits + 1];
  require_floating(context, logits);
  TENON_CHECK(target.dtype == DType::int64, DTypeError,
              "[{}] operand 'target' is {}; needed class indices in int64", op, name(target.dtype));
  const Shape& shape = context[logits].shape;
  TENON_CHECK(shape.rank() == 2 && target.shape.rank() == 1 && unify(shape[0], target.shape[0]),
              ShapeError, "[{}] input {} and target {}; needed (N, C) and (N)", op,
              shape.to_string(), target.shape.to_string());
}

std::vector<TensorSpec> infer_cross_entropy(const InferContext& context) {
  require_logits_and_target(context, 0);
  TensorSpec loss = context[0];
  loss.shape = context.attributes<CrossEntropyAttrs>().reduction == Reduction::none
                   ? Shape{context[0].shape[0]}
                   : Shape{};
  return {loss};
}

std::vector<Tensor> vjp_cross_entropy(const VjpContext& call) {
  std::vector<Tensor> gradients(2);
  if (call.needs(0)) {
    gradients[0] = cross_entropy_backward(call.cotangent(0), call.input(0), call.input(1),
                                          call.attributes<CrossEntropyAttrs>());
  }
  return gradients;
}

std::vector<TensorSpec> infer_cross_entropy_backward(const InferContext& context) {
  require_logits_and_target(context, 1);
  require_same_dtype(context, 0, 1);
  const bool per_row = context.attributes<CrossEntropyAttrs>().reduction == Reduction::none;
  const Shape& grad = context[0].shape;
  TENON_CHECK(per_row ? grad.rank() == 1 && unify(grad[0], context[1].shape[0]) : grad.rank() == 0,
              ShapeError, "[cross_entropy_backward] grad {} for the input {} and reduction '{}'",
              grad.to_string(), context[1].shape.to_string(),
              enum_name(context.attributes<CrossEntropyAttrs>().reduction));
  return {context[1]};
}

/// What a loss of one row counts for in the whole: 1, or 1/(targets that are not ignored) in a mean.
Tensor share_of_row(const Tensor& target, const CrossEntropyAttrs& attrs, DType dtype) {
  if (attrs.reduction != Reduction::mean) return full({}, 1, {dtype, target.device()});
  return reciprocal(sum(cast(ne(target, Scalar(attrs.ignore_index)), dtype)));
}

/// With P the rows' gradients for a loss of 1 each, and w what each loss counts for, the op is w·P.
std::vector<Tensor> vjp_cross_entropy_backward(const VjpContext& call) {
  const auto& attrs = call.attributes<CrossEntropyAttrs>();
  const Tensor grad = call.input(0), input = call.input(1), target = call.input(2);
  const Tensor cotangent = call.cotangent(0);  // (N, C)
  const TensorOptions options{input.dtype(), input.device()};
  const Shape rows{input.size(0)};
  std::vector<Tensor> gradients(3);
  if (call.needs(0)) {
    const CrossEntropyAttrs per_row{attrs.ignore_index, Reduction::none, attrs.label_smoothing};
    const Tensor each =
        cross_entropy_backward(expand(full({}, 1, options), rows), input, target, per_row);
    const Tensor products = sum(cotangent * each, {1});  // (N)
    gradients[0] = attrs.reduction == Reduction::none
                       ? products
                       : sum(products) * share_of_row(target, attrs, input.dtype());
  }
  if (call.needs(1)) {
    gradients[1] = cross_entropy_second_derivative(grad, input, target, cotangent, attrs);
  }
  return gradients;
}

/// The kernels walk the logits by their strides.
bool cross_entropy_accepts(int operand, const TensorView& view) {
  return operand == 0 || view.is_contiguous();
}
bool cross_entropy_backward_accepts(int operand, const TensorView& view) {
  return operand == 1 || view.is_contiguous();
}

}  // namespace

std::int64_t ignored_target(const Attrs& attrs) {
  return attrs.as<CrossEntropyAttrs>().ignore_index;
}

CrossEntropyAttrs cross_entropy_attrs(const char* op, const CrossEntropyOptions& options) {
  // In a pattern a NaN codes a wildcard.
  TENON_CHECK(in_pattern() || (options.label_smoothing >= 0 && options.label_smoothing <= 1),
              ValueError, "[{}] label_smoothing {}; needed a number from 0 to 1", op,
              options.label_smoothing);
  return {options.ignore_index, options.reduction, options.label_smoothing};
}

Tensor cross_entropy_second_derivative(const Tensor& grad, const Tensor& logits,
                                       const Tensor& target, const Tensor& cotangent,
                                       const CrossEntropyAttrs& attrs) {
  const Tensor counted = ne(target, Scalar(attrs.ignore_index));  // (N)
  const Tensor zero = full({}, 0, {logits.dtype(), logits.device()});
  const Tensor share = share_of_row(target, attrs, logits.dtype());
  const Tensor weight = where(counted, grad * share, zero);  // (N)
  return softmax_backward(cotangent * unsqueeze(weight, 1), softmax(logits, 1), 1);
}

Tensor cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                              const CrossEntropyAttrs& attrs) {
  static const Op& op = get_op("cross_entropy_backward");
  return apply1(op, {grad, input, target}, attrs);
}

Op define_cross_entropy() {
  return OpBuilder("cross_entropy")
      .doc(
          "With p = softmax(input) and s the label smoothing: -(1-s)·log p[target] - s·mean(log p) "
          "of each row, (N, C), (N) -> (N), or their sum or mean. A target equal to ignore_index "
          "gives 0 and does not count in the mean, which is NaN when none counts.")
      .operand("input")
      .operand("target")
      .selects_by({.index = 1,
                   .table = 0,
                   .axis = [](const Attrs&) { return std::int64_t{1}; },
                   .ignored = ignored_target})
      .infer(infer_cross_entropy)
      .vjp(vjp_cross_entropy)
      .saves_inputs({0, 1})
      .cpu({.name = "cpu.cross_entropy",
            .run = cpu::cross_entropy,
            .accepts = cross_entropy_accepts})
      .done();
}

Op define_cross_entropy_backward() {
  return OpBuilder("cross_entropy_backward")
      .doc(
          "The gradient of cross_entropy's input: softmax(input) - (1-s)·onehot(target) - s/C, "
          "times "
          "grad, and divided by the number of rows that count for a mean; 0 where ignored.")
      .operand("grad")
      .operand("input")
      .operand("target")
      .infer(infer_cross_entropy_backward)
      .vjp(vjp_cross_entropy_backward)
      .saves_inputs({0, 1, 2})
      .cpu({.name = "cpu.cross_entropy_backward",
            .run = cpu::cross_entropy_backward,
            .accepts = cross_entropy_backward_accepts})
      .done();
}

}  // namespace ops
}  // namespace tenon
