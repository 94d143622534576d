// gelu and its slope for inner loops, exact and with tanh: what gelu and the ops fused with it share.
#pragma once

#include "tensor/cpu/vector_math.h"

namespace tenon::cpu {

inline constexpr double kGeluCubic = 0.044715;
inline constexpr double kRootTwoOverPi = 0.79788456080286535588;
/// From here on the tanh form is a straight line in every type: e^(2|u|) exceeds float64.
inline constexpr double kGeluTanhReach = 32;

template <class C>
C gelu(C x) {
  return x * normal_cdf(x);
}

/// 0.5·(1 + tanh(u)) = 1/(1 + e^(-2u)), which keeps its digits where tanh(u) is close to -1.
template <class C>
C gelu_tanh(C x) {
  const C u = C(kRootTwoOverPi) * (x + C(kGeluCubic) * x * x * x);
  return x * sigmoid(2 * u);
}

/// Φ(x) + x·φ(x), φ the normal density.
template <class C>
C gelu_slope(C x) {
  const Normal<C> of_x = normal(x);  // one exponential serves both
  return of_x.cdf + x * of_x.density;
}

/// s + 2x·s(1 - s)·u' with s = sigmoid(2u), at an x that is kept in reach: farther away u'
/// overflows to meet s(1 - s) = 0.
template <class C>
C gelu_tanh_slope(C any) {
  constexpr C kReach = C(kGeluTanhReach);
  C x = select(any > kReach, kReach, any);  // a NaN passes both comparisons
  x = select(x < -kReach, -kReach, x);
  const C u = C(kRootTwoOverPi) * (x + C(kGeluCubic) * x * x * x);
  const C du = C(kRootTwoOverPi) * (1 + C(3 * kGeluCubic) * x * x);
  const C s = sigmoid(2 * u);
  return s + 2 * x * (s * (1 - s)) * du;
}

}  // namespace tenon::cpu
