// Vector accesses: N neighbouring elements read or written at once. The address must be aligned to
// the vector's size, at most 16 bytes; is_aligned() is the test that host code makes first.
#pragma once

#include <cstdint>

#include "cuda/device/convert.cuh"

namespace tenon::cuda {

inline constexpr int kVectorBytes = 16;

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T item[N];
};

/// Elements of one 16-byte access.
template <class T>
inline constexpr int vector_length = kVectorBytes / static_cast<int>(sizeof(T));

template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* source) {
  static_assert(sizeof(Pack<T, N>) <= kVectorBytes);
  return *reinterpret_cast<const Pack<T, N>*>(source);
}

template <class T, int N>
__device__ __forceinline__ void store_pack(T* target, const Pack<T, N>& pack) {
  static_assert(sizeof(Pack<T, N>) <= kVectorBytes);
  *reinterpret_cast<Pack<T, N>*>(target) = pack;
}

/// N elements to the compute type, by 16-byte loads (N elements may take several).
template <int N, class T>
__device__ __forceinline__ void load_widened(const T* source, compute_type<T> (&values)[N]) {
  constexpr int kLength = vector_length<T> < N ? vector_length<T> : N;
#pragma unroll
  for (int first = 0; first < N; first += kLength) {
    const Pack<T, kLength> pack = load_pack<T, kLength>(source + first);
#pragma unroll
    for (int i = 0; i < kLength; ++i) values[first + i] = widen(pack.item[i]);
  }
}

/// The inverse of load_widened.
template <int N, class T>
__device__ __forceinline__ void store_narrowed(T* target, const compute_type<T> (&values)[N]) {
  constexpr int kLength = vector_length<T> < N ? vector_length<T> : N;
#pragma unroll
  for (int first = 0; first < N; first += kLength) {
    Pack<T, kLength> pack;
#pragma unroll
    for (int i = 0; i < kLength; ++i) pack.item[i] = convert<T>(values[first + i]);
    store_pack<T, kLength>(target + first, pack);
  }
}

/// Whether `data` is a multiple of `bytes`; null is.
inline bool is_aligned(const void* data, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

}  // namespace tenon::cuda
