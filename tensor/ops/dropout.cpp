// dropout: random zeros in training, the identity in evaluation.
#include "tensor/cpu/dropout.h"

#include "tensor/calls/dropout_call.h"
#include "tensor/calls/taken_numbers.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor dropout(const Tensor& input, double p, DropoutMode mode) {
  const ops::TakenNumbers taken;
  return ops::dropout_with(input, ops::dropout_call("dropout", p, mode));
}

std::string_view enum_name(DropoutMode mode) {
  switch (mode) {
    case DropoutMode::train: return "train";
    case DropoutMode::eval: return "eval";
    default: return "follow";
  }
}

DropoutMode parse_enum(DropoutMode, std::string_view text) {
  for (const DropoutMode mode : {DropoutMode::follow, DropoutMode::train, DropoutMode::eval}) {
    if (text == enum_name(mode)) return mode;
  }
  detail::fail<ValueError>("dropout mode '{}'; needed follow, train or eval", text.substr(0, 80));
}

namespace ops {

DropoutAttrs dropout_call(std::string_view op, double p, DropoutMode mode) {
  // In a pattern a NaN codes a wildcard.
  TENON_CHECK(in_pattern() || (p >= 0 && p <= 1), ValueError,
              "[{}] dropout probability {}; needed a number from 0 to 1", op, p);
  const bool active = resolved(mode) != DropoutMode::eval;
  return {p, mode, p != 0 ? next_dropout_site(active) : 0};
}

Tensor dropout_with(const Tensor& input, const DropoutAttrs& attrs) {
  static const Op& op = get_op("dropout");
  return apply1(op, {input}, attrs);
}

namespace {

bool does_nothing(const Attrs& attrs, bool training) {
  const auto& a = attrs.as<DropoutAttrs>();
  return !drops(a.mode, a.p, training);
}

/// The same call on the gradient: at the same site it draws the same mask.
std::vector<Tensor> vjp_dropout(const VjpContext& call) {
  return {dropout_with(call.cotangent(0), call.attributes<DropoutAttrs>())};
}

}  // namespace

Op define_dropout() {
  return OpBuilder("dropout")
      .doc(
          "In training 0 with probability p, else input/(1-p); in evaluation the input. Which "
          "elements are dropped is a function of (seed, forward, site, row, column), where the "
          "last "
          "axis is the column; a dropped element is 0 even where the input is NaN or Inf.")
      .operand("input")
      .trait(Trait::random)
      .infer(infer_float_like_input)
      .identity(does_nothing)
      .vjp(vjp_dropout)
      .cpu({.name = "cpu.dropout",
            .run = cpu::dropout,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
