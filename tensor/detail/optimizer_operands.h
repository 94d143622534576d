// How adam_step and sgd_step lay out their operands, for their definitions and kernels.
#pragma once

#include <utility>

#include "tensor/detail/optimizer_formulas.h"
#include "tensor/dtype.h"
#include "tensor/ops/attributes.h"

namespace tenon {

enum AdamOperand { kAdamParam, kAdamGrad, kAdamAvg, kAdamAvgSq, kAdamStep, kAdamLr, kAdamScale };
enum SgdOperand { kSgdParam, kSgdGrad, kSgdLr, kSgdBuffer, kSgdStep, kSgdScale };

inline AdamSettings adam_settings(const AdamStepAttrs& a) {
  return {a.beta1, a.beta2, a.eps, a.weight_decay, a.decoupled};
}
inline SgdSettings sgd_settings(const SgdStepAttrs& a) {
  return {a.momentum, a.dampening, a.weight_decay, a.nesterov};
}

/// Calls f.operator()<P, G>() with the element types of the parameter and of the gradient: equal, or
/// float with a 16-bit type.
template <class F>
void dispatch_update(DType param, DType grad, F&& f) {
  if (param == DType::float32 && grad == DType::float16) {
    f.template operator()<float, Half>();
  } else if (param == DType::float32 && grad == DType::bfloat16) {
    f.template operator()<float, BFloat16>();
  } else {
    dispatch_float(param, [&]<typename P>() { f.template operator()<P, P>(); });
  }
}

}  // namespace tenon
