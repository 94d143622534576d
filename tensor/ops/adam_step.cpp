// adam_step: one Adam or AdamW update of any number of parameters.
#include "tensor/cpu/optimizer_steps.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/update_rules.h"

namespace tenon {

std::vector<UpdatedParameter> adam_step(const std::vector<ParameterUpdate>& updates,
                                        const Tensor& lr, const Tensor& grad_scale,
                                        const AdamAttrs& attrs) {
  static const Op& op = get_op("adam_step");
  return ops::apply_updates(op, layout_of(attrs), updates, lr, grad_scale, attrs);
}

namespace ops {

Op define_adam_step() {
  return OpBuilder("adam_step")
      .doc(
          "For each parameter, given as (param, grad, step, exp_avg, exp_avg_sq), the new (param, "
          "exp_avg, exp_avg_sq[, param rounded to copies]): g = grad·grad_scale, plus "
          "weight_decay·param unless decoupled; m = beta1·m + (1-beta1)·g; v = beta2·v + "
          "(1-beta2)·g²; param·(1 - lr·weight_decay if decoupled) - lr/(1-beta1^step)·m/(√v/√(1-"
          "beta2^step) + eps). Kingma, Ba, 2015; Loshchilov, Hutter, 2019.")
      .operand("lr")
      .optional("grad_scale")
      .variadic("parameters")
      .trait(Trait::update)
      .infer([](const InferContext& context) {
        return infer_updates(context, layout_of(context.attributes<AdamAttrs>()));
      })
      .cpu({.name = "cpu.adam_step", .run = cpu::adam_step})
      .not_differentiable()
      .done();
}

}  // namespace ops
}  // namespace tenon
