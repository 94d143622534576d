// The updates of SGD and Adam for one element, and clipping, for host and device code; the formulas and
// the order of rounding are PyTorch's. What all elements share is computed once, in double.
#pragma once

#include <cmath>

#include "tensor/philox.h"  // TENON_HOST_DEVICE

namespace tenon {

/// adam_step's attributes without what only the host needs.
struct AdamSettings {
  double beta1, beta2, eps, weight_decay;
  bool decoupled;
};

/// The numbers of one Adam update in the type that elements are computed in.
template <class C>
struct AdamUpdate {
  C beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
  C l2;      // added to the gradient as l2·param
  C shrink;  // the parameter is multiplied by it first
  C negative_step_size, root_correction2, grad_scale;

  TENON_HOST_DEVICE static AdamUpdate make(const AdamSettings& s, double step, double lr,
                                           double grad_scale) {
    const double correction1 = 1 - ::pow(s.beta1, step);
    const double correction2 = 1 - ::pow(s.beta2, step);
    return {C(s.beta1),
            C(s.beta2),
            C(1 - s.beta1),
            C(1 - s.beta2),
            C(s.eps),
            C(s.decoupled ? 0 : s.weight_decay),
            C(s.decoupled ? 1 - lr * s.weight_decay : 1),
            C(-(lr / correction1)),
            C(::sqrt(correction2)),
            C(grad_scale)};
  }

  TENON_HOST_DEVICE void apply(C& param, C grad, C& exp_avg, C& exp_avg_sq) const {
    grad = grad * grad_scale + l2 * param;
    exp_avg = exp_avg * beta1 + grad * one_minus_beta1;
    exp_avg_sq = exp_avg_sq * beta2 + grad * grad * one_minus_beta2;
    const C denominator = std::sqrt(exp_avg_sq) / root_correction2 + eps;
    param = param * shrink + negative_step_size * exp_avg / denominator;
  }
};

/// What gradients of this global norm are multiplied by, PyTorch's formula. NaN when the norm is.
TENON_HOST_DEVICE double clip_coefficient(double norm, double max_norm) {
  const double ratio = max_norm / (norm + 1e-6);
  return ratio > 1 ? 1 : ratio;
}

/// sgd_step's attributes without what only the host needs.
struct SgdSettings {
  double momentum, dampening, weight_decay;
  bool nesterov;
};

template <class C>
struct SgdUpdate {
  C keep;  // of the old buffer
  C take;  // of the gradient, into the buffer
  C l2, momentum, negative_lr, grad_scale;
  bool nesterov;

  TENON_HOST_DEVICE static SgdUpdate make(const SgdSettings& s, double step, double lr,
                                          double grad_scale) {
    const bool first = step <= 1;
    return {C(first ? 0 : s.momentum),
            C(first ? 1 : 1 - s.dampening),
            C(s.weight_decay),
            C(s.momentum),
            C(-lr),
            C(grad_scale),
            s.nesterov};
  }

  TENON_HOST_DEVICE void apply(C& param, C grad) const {
    grad = grad * grad_scale + l2 * param;
    param = param + negative_lr * grad;
  }

  TENON_HOST_DEVICE void apply(C& param, C grad, C& buffer) const {
    grad = grad * grad_scale + l2 * param;
    // Not a product with 0: what the buffer held before the first step does not count, NaN included.
    buffer = keep == C(0) ? take * grad : keep * buffer + take * grad;
    param = param + negative_lr * (nesterov ? grad + momentum * buffer : buffer);
  }
};

}  // namespace tenon
