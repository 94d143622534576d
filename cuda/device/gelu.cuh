// gelu and its slope, exact and with tanh: what gelu and the ops fused with it share.
#pragma once

#include "cuda/device/math.cuh"

namespace tenon::cuda {

template <class C>
__device__ __forceinline__ C gelu(C x) {
  return x * normal_cdf(x);
}

/// 0.5·(1 + tanh(u)) = 1/(1 + e^(-2u)), which does not cancel where tanh(u) is close to -1.
template <class C>
__device__ __forceinline__ C gelu_tanh(C x) {
  const C u = C(0.79788456080286535588) * (x + C(0.044715) * x * x * x);
  return x * sigmoid_of(C(2) * u);
}

/// Φ(x) + x·φ(x), φ the normal density.
template <class C>
__device__ __forceinline__ C gelu_slope(C x) {
  return normal_cdf(x) + x * (C(0.39894228040143267794) * exp_of(C(-0.5) * x * x));
}

/// From here on the tanh form is a straight line in every type: e^(2|u|) exceeds float64.
inline constexpr int kGeluTanhReach = 32;

/// s + 2x·s(1 - s)·u' with s = sigmoid(2u), u = √(2/π)(x + 0.044715x³). Where s(1 - s) is 0, x and u'
/// are kept from overflowing.
template <class C>
__device__ __forceinline__ C gelu_tanh_slope(C x) {
  constexpr C kRootTwoOverPi = C(0.79788456080286535588);
  const C u = kRootTwoOverPi * (x + C(0.044715) * x * x * x);
  const C s = sigmoid_of(C(2) * u);  // NaN for NaN, which `near` is not
  const C near = fmax(fmin(x, C(kGeluTanhReach)), C(-kGeluTanhReach));
  const C du = kRootTwoOverPi * (C(1) + C(3 * 0.044715) * near * near);
  return s + C(2) * near * (s * (C(1) - s)) * du;
}

}  // namespace tenon::cuda
