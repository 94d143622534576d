// adam_step: one Adam or AdamW update of one parameter.
#include "tensor/cpu/optimizer_steps.h"
#include "tensor/detail/optimizer_operands.h"
#include "tensor/detail/update_rules.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/ops/optimizer_steps.h"

namespace tenon {

AdamStepResult adam_step(const Tensor& param, const Tensor& grad, const Tensor& exp_avg,
                         const Tensor& exp_avg_sq, const Tensor& step, const Tensor& lr,
                         const Tensor& grad_scale, const AdamStepAttrs& attrs) {
  static const Op& op = get_op("adam_step");
  const Tensor operands[] = {param, grad, exp_avg, exp_avg_sq, step, lr, grad_scale};
  const std::vector<Tensor> results = apply(op, operands, attrs);
  return {results.at(0), results.at(1), results.at(2)};
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_adam_step(const InferContext& context) {
  require_gradient_of(context, kAdamGrad, kAdamParam);
  require_state_of(context, kAdamAvg, kAdamParam);
  require_state_of(context, kAdamAvgSq, kAdamParam);
  for (int i : {kAdamStep, kAdamLr, kAdamScale}) require_one_element(context, i);
  return {context[kAdamParam], context[kAdamAvg], context[kAdamAvgSq]};
}

}  // namespace

Op define_adam_step() {
  return OpBuilder("adam_step")
      .doc(
          "New (param, exp_avg, exp_avg_sq): g = grad·grad_scale, plus weight_decay·param unless "
          "decoupled; m = beta1·m + (1-beta1)·g; v = beta2·v + (1-beta2)·g²; param·(1 - "
          "lr·weight_decay if decoupled) - lr/(1-beta1^step)·m/(√v/√(1-beta2^step) + eps). "
          "Kingma, Ba, 2015; Loshchilov, Hutter, 2019.")
      .operand("param")
      .operand("grad")
      .operand("exp_avg")
      .operand("exp_avg_sq")
      .operand("step")
      .operand("lr")
      .optional("grad_scale")
      .trait(Trait::elementwise)
      .infer(infer_adam_step)
      .cpu({.name = "cpu.adam_step", .run = cpu::adam_step})
      .not_differentiable()
      .done();
}

}  // namespace ops
}  // namespace tenon
