// Activations as products' own kernels end in: float32 in, for results that are rounded to 16 bits, by
// the special function unit.
#pragma once

#include "cuda/device/gelu.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/gemm.h"

namespace tenon::cuda {

/// An activation and its slope at one place.
struct ValueAndSlope {
  float value, slope;
};

/// 1/(1 + e^(-2u)) of gelu_tanh, of some 2^-22 relative error.
__device__ __forceinline__ float gelu_sigmoid(float x, float square) {
  constexpr float kScale = -2.0F * 0.79788456080286535588F * 1.44269504088896340736F;
  const float exponent = x * fmaf(kScale * 0.044715F, square, kScale);
  return reciprocal_approximate(1.0F + exp2_approximate(exponent));
}

/// x within kReach of 0; NaN stays.
template <int kReach>
__device__ __forceinline__ float within_reach(float x) {
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(static_cast<float>(kReach)));
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(static_cast<float>(-kReach)));
  return x;
}

__device__ __forceinline__ ValueAndSlope gelu_tanh_terms(float x) {
  constexpr float kScale = 2.0F * 0.79788456080286535588F;
  const float near = within_reach<kGeluTanhReach>(x);
  const float square = near * near;
  const float s = gelu_sigmoid(near, square);
  const float slope = fmaf(kScale * 3 * 0.044715F, square, kScale);
  return {x * s, fmaf(near * s * slope, 1.0F - s, s)};
}

/// Φ(x), and e^(-x²/2) of which √(2π) is the density.
struct Normal {
  float cdf, power;

  /// Of 1.2e-5 relative error in both tails: the lower one is e^(-x²/2) times a polynomial of
  /// 1/(1 + 0.32|x|), the form of M. Abramowitz, I. Stegun, "Handbook of Mathematical Functions",
  /// 7.1.26, fitted anew for the relative error.
  __device__ __forceinline__ explicit Normal(float x) {
    const float t = reciprocal_approximate(fmaf(0.32F, fabsf(x), 1.0F));
    power = exp2_approximate(-0.72134752044448170368F * x * x);
    float sum = fmaf(-0.0667719825F, t, 0.139579269F);
    sum = fmaf(sum, t, 0.0496203403F);
    sum = fmaf(sum, t, 0.123048523F);
    sum = fmaf(sum, t, 0.1268287225F);
    sum = fmaf(sum, t, 0.1276896645F);
    const float tail = sum * t * power;
    cdf = x >= 0 ? 1.0F - tail : tail;
  }
};

__device__ __forceinline__ ValueAndSlope gelu_terms(float x) {
  const Normal normal(x);
  return {x * normal.cdf, fmaf(x * 0.39894228040143267794F, normal.power, normal.cdf)};
}

__device__ __forceinline__ float silu_sigmoid(float x) {
  return reciprocal_approximate(1.0F + exp2_approximate(-1.44269504088896340736F * x));
}

/// The slope is s·(1 + x·(1 - s)); far from 0, where 1 - s is 0, x is kept from overflowing.
__device__ __forceinline__ ValueAndSlope silu_terms(float x) {
  constexpr int kReach = 128;
  const float near = within_reach<kReach>(x);
  const float s = silu_sigmoid(near);
  return {x * silu_sigmoid(x), s * fmaf(near, 1.0F - s, 1.0F)};
}

__device__ __forceinline__ ValueAndSlope relu_terms(float x) {
  return {nan_max(x, 0.0F), x <= 0.0F ? 0.0F : 1.0F};
}

/// The values of one element as they are stored.
struct Finished {
  float d;
  float second;
};

/// What becomes of a sum x, beside aux where a gradient reads it.
template <GemmEpilogue kEpilogue>
__device__ __forceinline__ Finished finish(float x, float aux) {
  using enum GemmEpilogue;
  if constexpr (kEpilogue == gelu_tanh) return {x * gelu_sigmoid(x, x * x), x};
  if constexpr (kEpilogue == gelu) return {x * Normal(x).cdf, x};
  if constexpr (kEpilogue == relu) return {nan_max(x, 0.0F), x};
  if constexpr (kEpilogue == silu) return {x * silu_sigmoid(x), x};
  if constexpr (is_gradient(kEpilogue)) {
    const ValueAndSlope terms = kEpilogue == gelu_gradient   ? gelu_terms(aux)
                                : kEpilogue == relu_gradient ? relu_terms(aux)
                                : kEpilogue == silu_gradient ? silu_terms(aux)
                                                             : gelu_tanh_terms(aux);
    return {x * terms.slope, terms.value};
  }
  return {x, 0.0F};
}

/// f(constant) for the constant of an epilogue that is known at run time only.
template <class F>
__device__ __forceinline__ void with_epilogue(GemmEpilogue epilogue, F&& f) {
  using enum GemmEpilogue;
  switch (epilogue) {
    case none: return f(std::integral_constant<GemmEpilogue, none>{});
    case gelu_tanh: return f(std::integral_constant<GemmEpilogue, gelu_tanh>{});
    case gelu_tanh_gradient: return f(std::integral_constant<GemmEpilogue, gelu_tanh_gradient>{});
    case gelu: return f(std::integral_constant<GemmEpilogue, gelu>{});
    case gelu_gradient: return f(std::integral_constant<GemmEpilogue, gelu_gradient>{});
    case relu: return f(std::integral_constant<GemmEpilogue, relu>{});
    case relu_gradient: return f(std::integral_constant<GemmEpilogue, relu_gradient>{});
    case silu: return f(std::integral_constant<GemmEpilogue, silu>{});
    case silu_gradient: return f(std::integral_constant<GemmEpilogue, silu_gradient>{});
  }
}

}  // namespace tenon::cuda
