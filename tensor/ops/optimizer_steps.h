// One optimizer update of one parameter as one op. They are what nn's optimizers emit; like every op
// they return new values, which the optimizer then assigns.
//
// A parameter and its state have one dtype; the gradient has it too, or is float16 or bfloat16 where
// the parameter is float32 (master weights). `step`, `lr` and `grad_scale` hold one float element
// each: `step` counts from 1, the gradient is multiplied by `grad_scale` before anything else.
#pragma once

#include "tensor/ops/attributes.h"
#include "tensor/tensor.h"

namespace tenon {

struct AdamStepResult {
  Tensor param;
  Tensor exp_avg;
  Tensor exp_avg_sq;
};
/// Kingma, Ba, "Adam", 2015; decoupled weight decay: Loshchilov, Hutter, 2019. `grad_scale` may be
/// undefined.
AdamStepResult adam_step(const Tensor& param, const Tensor& grad, const Tensor& exp_avg,
                         const Tensor& exp_avg_sq, const Tensor& step, const Tensor& lr,
                         const Tensor& grad_scale, const AdamStepAttrs& attrs);

struct SgdStepResult {
  Tensor param;
  Tensor momentum_buffer;  // undefined without momentum
};
/// `momentum_buffer` and `step` are undefined without momentum; at step 1 the buffer becomes the
/// gradient whatever it held, as in PyTorch.
SgdStepResult sgd_step(const Tensor& param, const Tensor& grad, const Tensor& momentum_buffer,
                       const Tensor& step, const Tensor& lr, const Tensor& grad_scale,
                       const SgdStepAttrs& attrs);

}  // namespace tenon
