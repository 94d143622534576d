// One optimizer update of any number of parameters as one op, which on a GPU is one launch. They are
// what nn's optimizers emit; like every op they return new values, which the optimizer then assigns.
//
//   auto updated = adam_step({{w, w.grad(), count, {m, v}}, {b, b.grad(), count, {n, u}}}, lr,
//                            grad_scale, {.weight_decay = 0.1, .no_decay = {1}});
//   w.copy_(updated[0].param);
//
// A parameter and its state have one dtype; the gradient has it too, or is float16 or bfloat16 where
// the parameter is float32 (a master weight). `step`, `lr` and `grad_scale` hold one floating element
// each: `step` counts from 1, gradients are multiplied by `grad_scale` before anything else.
#pragma once

#include <vector>

#include "tensor/ops/optimizer_attributes.h"
#include "tensor/tensor.h"

namespace tenon {

/// What one parameter's update reads.
struct ParameterUpdate {
  Tensor param;
  Tensor grad;
  Tensor step;
  std::vector<Tensor> state;
};
/// What it gives.
struct UpdatedParameter {
  Tensor param;
  std::vector<Tensor> state;
  Tensor copy;  // undefined where attrs.copies is none
};

/// Kingma, Ba, "Adam", 2015; decoupled weight decay: Loshchilov, Hutter, 2019. The state is exp_avg,
/// exp_avg_sq; `grad_scale` may be undefined.
std::vector<UpdatedParameter> adam_step(const std::vector<ParameterUpdate>& updates,
                                        const Tensor& lr, const Tensor& grad_scale,
                                        const AdamAttrs& attrs);
/// The state is momentum_buffer, or nothing where momentum is 0; at step 1 the buffer becomes the
/// gradient whatever it held, as in PyTorch.
std::vector<UpdatedParameter> sgd_step(const std::vector<ParameterUpdate>& updates,
                                       const Tensor& lr, const Tensor& grad_scale,
                                       const SgdAttrs& attrs);

struct GlobalNorm {
  Tensor norm;
  Tensor clip_coefficient;  // undefined without max_norm
};
/// What nn::global_norm calls: √(Σ x²) over all elements of all floating tensors, shape (): float64 if one of them is, else
/// float32; and min(1, max_norm/(norm + 1e-6)), what clipping multiplies them by.
namespace ops {
GlobalNorm global_norm(const std::vector<Tensor>& tensors, const GlobalNormAttrs& attrs = {});
}

}  // namespace tenon
