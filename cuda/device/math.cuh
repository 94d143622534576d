// Elementary functions by type. The float versions are CUDA's single-precision functions, of at most 2 units
// in the last place; NaN and Inf propagate.
#pragma once

#include <cmath>

namespace tenon::cuda {

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return ::exp(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return ::log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return ::log1p(x); }
__device__ __forceinline__ float sqrt_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_of(double x) { return ::sqrt(x); }
__device__ __forceinline__ float rsqrt_of(float x) { return rsqrtf(x); }
__device__ __forceinline__ double rsqrt_of(double x) { return ::rsqrt(x); }
__device__ __forceinline__ float sin_of(float x) { return sinf(x); }
__device__ __forceinline__ double sin_of(double x) { return ::sin(x); }
__device__ __forceinline__ float cos_of(float x) { return cosf(x); }
__device__ __forceinline__ double cos_of(double x) { return ::cos(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return ::tanh(x); }
__device__ __forceinline__ float erf_of(float x) { return erff(x); }
__device__ __forceinline__ double erf_of(double x) { return ::erf(x); }
__device__ __forceinline__ float pow_of(float x, float y) { return powf(x, y); }
__device__ __forceinline__ double pow_of(double x, double y) { return ::pow(x, y); }

__device__ __forceinline__ float absolute(float x) { return fabsf(x); }
__device__ __forceinline__ double absolute(double x) { return ::fabs(x); }

/// 1/x for x >= 1 in one instruction of at most 1 unit in the last place: division is ten, and branches.
__device__ __forceinline__ float reciprocal_of_large(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ double reciprocal_of_large(double x) { return 1 / x; }

/// 1/(1 + e^-x), which keeps its digits for large negative x too.
template <class C>
__device__ __forceinline__ C sigmoid_of(C x) {
  return reciprocal_of_large(C(1) + exp_of(-x));
}

/// Φ(x) = erfc(-x/√2)/2, accurate in both tails.
__device__ __forceinline__ float normal_cdf(float x) { return normcdff(x); }
__device__ __forceinline__ double normal_cdf(double x) { return ::normcdf(x); }

/// The larger value; NaN when either is.
template <class C>
__device__ __forceinline__ C nan_max(C a, C b) {
  return a > b || a != a ? a : b;
}
template <class C>
__device__ __forceinline__ C nan_min(C a, C b) {
  return a < b || a != a ? a : b;
}

}  // namespace tenon::cuda
