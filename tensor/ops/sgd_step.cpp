// sgd_step: one update of one parameter by stochastic gradient descent, with or without momentum.
#include "tensor/cpu/optimizer_steps.h"
#include "tensor/detail/check.h"
#include "tensor/detail/optimizer_operands.h"
#include "tensor/detail/update_rules.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/ops/optimizer_steps.h"

namespace tenon {

SgdStepResult sgd_step(const Tensor& param, const Tensor& grad, const Tensor& momentum_buffer,
                       const Tensor& step, const Tensor& lr, const Tensor& grad_scale,
                       const SgdStepAttrs& attrs) {
  static const Op& op = get_op("sgd_step");
  const Tensor operands[] = {param, grad, lr, momentum_buffer, step, grad_scale};
  const std::vector<Tensor> results = apply(op, operands, attrs);
  return {results.at(0), results.size() > 1 ? results[1] : Tensor()};
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_sgd_step(const InferContext& context) {
  require_gradient_of(context, kSgdGrad, kSgdParam);
  for (int i : {kSgdLr, kSgdStep, kSgdScale}) require_one_element(context, i);
  TENON_CHECK(context.has(kSgdBuffer) == context.has(kSgdStep), ValueError,
              "[sgd_step] momentum_buffer and step are given together or not at all");
  if (!context.has(kSgdBuffer)) {
    TENON_CHECK(context.attributes<SgdStepAttrs>().momentum == 0, ValueError,
                "[sgd_step] momentum {} needs momentum_buffer and step",
                context.attributes<SgdStepAttrs>().momentum);
    return {context[kSgdParam]};
  }
  require_state_of(context, kSgdBuffer, kSgdParam);
  return {context[kSgdParam], context[kSgdBuffer]};
}

}  // namespace

Op define_sgd_step() {
  return OpBuilder("sgd_step")
      .doc(
          "New (param[, momentum_buffer]): g = grad·grad_scale + weight_decay·param; b = g at step "
          "1, else momentum·b + (1-dampening)·g; param - lr·d, where d is g without a buffer, "
          "g + momentum·b with nesterov, else b. Sutskever et al., 2013, as PyTorch writes it.")
      .operand("param")
      .operand("grad")
      .operand("lr")
      .optional("momentum_buffer")
      .optional("step")
      .optional("grad_scale")
      .trait(Trait::elementwise)
      .infer(infer_sgd_step)
      .cpu({.name = "cpu.sgd_step", .run = cpu::sgd_step})
      .not_differentiable()
      .done();
}

}  // namespace ops
}  // namespace tenon
