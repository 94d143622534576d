// Reductions within a warp and a block. Their trees are fixed by the number of lanes, so results are
// the same from run to run.
#pragma once

#include "cuda/device/math.cuh"

namespace tenon::cuda {

inline constexpr int kWarp = 32;

struct Sum {
  template <class C>
  __device__ __forceinline__ C operator()(C a, C b) const {
    return a + b;
  }
};
/// Ignores NaN: for softmax, where a NaN enters through the exponential.
struct NumberMax {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
};
/// NaN when either is.
struct NanMax {
  template <class C>
  __device__ __forceinline__ C operator()(C a, C b) const {
    return nan_max(a, b);
  }
};

/// `value` combined over groups of `lanes` neighbouring lanes, a power of two up to 32; every lane
/// gets the result. All lanes of the warp must call it.
template <class C, class Op>
__device__ __forceinline__ C warp_reduce(C value, int lanes, Op op) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    if (offset >= lanes) continue;
    value = op(value, static_cast<C>(__shfl_xor_sync(0xffffffffU, value, offset)));
  }
  return value;
}

/// `value` combined over `lanes` threads: a group within a warp, or the whole block when `lanes` > 32
/// (then a multiple of 32). Every thread gets the result. `scratch` holds 32 values.
template <class C, class Op>
__device__ __forceinline__ C group_reduce(C value, int lanes, C* scratch, Op op) {
  if (lanes <= kWarp) return warp_reduce(value, lanes, op);
  value = warp_reduce(value, kWarp, op);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  __syncthreads();  // an earlier reduction may still be reading
  if (threadIdx.x % kWarp == 0) scratch[warp] = value;
  __syncthreads();
  value = scratch[0];
  for (int i = 1; i < lanes / kWarp; ++i) value = op(value, scratch[i]);
  return value;
}

}  // namespace tenon::cuda
