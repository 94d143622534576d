// The maximum of a row and Σ exp(x - maximum) in one pass over it.
#pragma once

#include <limits>

#include "cuda/device/reduce.cuh"

namespace tenon::cuda {

/// Maximum and Σ exp(x - maximum) of the values seen so far.
template <class C>
struct RunningSum {
  C maximum = -std::numeric_limits<C>::infinity();
  C sum = C(0);

  __device__ __forceinline__ void add(C value) {
    if (value == -std::numeric_limits<C>::infinity()) return;  // a term of 0
    if (value != value)
      sum = value;
    else
      merge({value, C(1)});
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
