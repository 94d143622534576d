// sgd_step: one update of any number of parameters by stochastic gradient descent, with or without
// momentum.
#include "tensor/cpu/optimizer_steps.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/update_rules.h"

namespace tenon {

std::vector<UpdatedParameter> sgd_step(const std::vector<ParameterUpdate>& updates,
                                       const Tensor& lr, const Tensor& grad_scale,
                                       const SgdAttrs& attrs) {
  static const Op& op = get_op("sgd_step");
  return ops::apply_updates(op, layout_of(attrs), updates, lr, grad_scale, attrs);
}

namespace ops {

Op define_sgd_step() {
  return OpBuilder("sgd_step")
      .doc(
          "For each parameter, given as (param, grad, step[, momentum_buffer]), the new (param[, "
          "momentum_buffer][, param rounded to copies]): g = grad·grad_scale + weight_decay·param; "
          "b = g at step 1, else momentum·b + (1-dampening)·g; param - lr·d, where d is g where "
          "momentum is 0, g + momentum·b with nesterov, else b. Sutskever et al., 2013, as PyTorch "
          "writes it.")
      .operand("lr")
      .optional("grad_scale")
      .variadic("parameters")
      .trait(Trait::update)
      .infer([](const InferContext& context) {
        return infer_updates(context, layout_of(context.attributes<SgdAttrs>()));
      })
      .cpu({.name = "cpu.sgd_step", .run = cpu::sgd_step})
      .not_differentiable()
      .done();
}

}  // namespace ops
}  // namespace tenon
