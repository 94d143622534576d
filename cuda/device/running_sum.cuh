// The maximum of a row and Σ exp(x - maximum) in one pass over it.
#pragma once

#include <limits>

#include "cuda/device/reduce.cuh"

namespace tenon::cuda {

/// e^x for x <= 0, of 2 units in the last place beside the rounding of x/ln 2; 0 below 2^-126.
__device__ __forceinline__ float exp_of_difference(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504088896340736F));
  return result;
}
__device__ __forceinline__ double exp_of_difference(double x) { return ::exp(x); }

/// Maximum and Σ exp(x - maximum) of the values seen so far.
template <class C>
struct RunningSum {
  C maximum = -std::numeric_limits<C>::infinity();
  C sum = C(0);

  __device__ __forceinline__ void add(C value) {
    const C values[1] = {value};
    add(values);
  }
  /// The sum is rescaled once for all of them.
  template <int N>
  __device__ __forceinline__ void add(const C (&values)[N]) {
    C larger = maximum;
#pragma unroll
    for (const C value : values) larger = NumberMax{}(larger, value);
    // While there is nothing but -inf, all differences would be NaN: any finite number gives the 0 they add.
    const C reference = larger == -std::numeric_limits<C>::infinity() ? C(0) : larger;
    sum *= exp_of_difference(maximum - reference);
#pragma unroll
    for (const C value : values) sum += exp_of_difference(value - reference);
    maximum = larger;
  }
  __device__ __forceinline__ void merge(const RunningSum& other) {
    const C larger = NumberMax{}(maximum, other.maximum);
    if (larger == -std::numeric_limits<C>::infinity()) {
      sum += other.sum;  // 0 or NaN: the differences below would be NaN
      return;
    }
    sum = sum * exp_of(maximum - larger) + other.sum * exp_of(other.maximum - larger);
    maximum = larger;
  }
  /// The whole row's, from what each of its `lanes` threads saw; `scratch` is group_reduce's.
  __device__ __forceinline__ RunningSum combined(int lanes, C* scratch) const {
    const C largest = group_reduce(maximum, lanes, scratch, NumberMax{});
    // A thread that saw nothing but -inf would make NaN of its 0.
    const C part = sum == C(0) ? C(0) : sum * exp_of(maximum - largest);
    return {largest, group_reduce(part, lanes, scratch, Sum{})};
  }
};

}  // namespace tenon::cuda
