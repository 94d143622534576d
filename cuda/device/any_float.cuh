// Elements of any floating dtype by a test at run time, for paths that are not worth a kernel for
// each dtype: a kernel is compiled for what it computes in, float or double.
#pragma once

#include "cuda/device/convert.cuh"

namespace tenon::cuda {

/// Element `at` of `data`, whose dtype is computed in C.
template <class C>
__device__ __forceinline__ C load_as(DType dtype, const void* data, std::int64_t at) {
  if constexpr (std::is_same_v<C, float>) {
    if (dtype == DType::float16) return widen(static_cast<const Half*>(data)[at]);
    if (dtype == DType::bfloat16) return widen(static_cast<const BFloat16*>(data)[at]);
  }
  return static_cast<const C*>(data)[at];
}

/// data[at] = value, rounded to `dtype`.
template <class C>
__device__ __forceinline__ void store_as(DType dtype, void* data, std::int64_t at, C value) {
  if constexpr (std::is_same_v<C, float>) {
    if (dtype == DType::float16) {
      static_cast<Half*>(data)[at] = convert<Half>(value);
      return;
    }
    if (dtype == DType::bfloat16) {
      static_cast<BFloat16*>(data)[at] = convert<BFloat16>(value);
      return;
    }
  }
  static_cast<C*>(data)[at] = value;
}

/// Calls f.operator()<C>() with what elements of a floating dtype are computed in.
template <class F>
decltype(auto) dispatch_compute(DType dtype, F&& f) {
  return dtype == DType::float64 ? f.template operator()<double>() : f.template operator()<float>();
}

}  // namespace tenon::cuda
