// How adam_step and sgd_step lay out their operands and results, for their definitions and kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "tensor/calls/optimizer_formulas.h"
#include "tensor/dtype.h"
#include "tensor/ops/optimizer_attributes.h"

namespace tenon {

/// Operands: lr, grad_scale (optional), then for each parameter: param, grad, step and its state.
/// Results, for each parameter: param, its state and, if asked for, the rounded copy.
struct UpdateLayout {
  int states = 0;
  RoundedCopy copies = RoundedCopy::none;

  static constexpr int kLr = 0;
  static constexpr int kGradScale = 1;
  static constexpr int kFirst = 2;
  int num_operands() const { return 3 + states; }  // of one parameter
  int num_results() const { return 1 + states + (copies == RoundedCopy::none ? 0 : 1); }
  int param(int i) const { return kFirst + i * num_operands(); }
  int grad(int i) const { return param(i) + 1; }
  int step(int i) const { return param(i) + 2; }
  int state(int i, int k) const { return param(i) + 3 + k; }
  int new_param(int i) const { return i * num_results(); }
  int new_state(int i, int k) const { return new_param(i) + 1 + k; }
  int copy(int i) const { return new_param(i) + 1 + states; }
  /// How many parameters so many operands belong to; -1 where they do not add up.
  int count(int operands) const {
    const bool whole = operands > kFirst && (operands - kFirst) % num_operands() == 0;
    return whole ? (operands - kFirst) / num_operands() : -1;
  }
};

inline UpdateLayout layout_of(const AdamAttrs& attrs) { return {2, attrs.copies}; }
inline UpdateLayout layout_of(const SgdAttrs& attrs) {
  return {attrs.momentum != 0 ? 1 : 0, attrs.copies};
}

/// Weight decay of parameter i.
template <class A>
double decay_of(const A& attrs, int i) {
  const auto& exempt = attrs.no_decay;
  return std::find(exempt.begin(), exempt.end(), i) == exempt.end() ? attrs.weight_decay : 0;
}

/// The settings of parameters with this weight decay.
inline AdamSettings settings_of(const AdamAttrs& a, double weight_decay) {
  return {a.beta1, a.beta2, a.eps, weight_decay, a.decoupled};
}
inline SgdSettings settings_of(const SgdAttrs& a, double weight_decay) {
  return {a.momentum, a.dampening, weight_decay, a.nesterov};
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
