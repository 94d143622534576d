// Warp-level tensor core products for compute capability 8.0 and later: asynchronous copies into
// shared memory, ldmatrix, and mma.sync m16n8k16 with float32 accumulators.
//
// Fragments of one warp, lane = 4·g + t (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A (16 x 16, row): a[0] = (g, 2t..2t+1)  a[1] = (g+8, 2t..)  a[2] = (g, 2t+8..)  a[3] = (g+8, 2t+8..)
//   B (16 x 8, col):  b[0] = (k 2t..2t+1, n g)                  b[1] = (k 2t+8.., n g)
//   C (16 x 8):       c[0], c[1] = (g, 2t..2t+1)                c[2], c[3] = (g+8, 2t..2t+1)
// So a C fragment pair, rounded, is the A fragment of the next product.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace tenon::cuda {

/// The shared-memory address of a pointer into shared memory, as PTX instructions take it.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Starts a copy of 16 bytes to shared memory past L1; writes zeros, and reads nothing, unless `valid`.
__device__ __forceinline__ void copy_async16(std::uint32_t shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}

/// The same for 4, 8 or 16 bytes, by way of L1 where there are fewer than 16.
template <int kBytes>
__device__ __forceinline__ void copy_async(std::uint32_t shared, const void* global, bool valid) {
  if constexpr (kBytes == 16) return copy_async16(shared, global, valid);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global),
               "n"(kBytes), "r"(valid ? kBytes : 0)
               : "memory");
}

/// Closes the group of copies that this thread has started.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most `kPending` of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Four 8x8 matrices of 16-bit elements; lane 8·i + r gives the address of row r of matrix i.
__device__ __forceinline__ void load_matrices(std::uint32_t (&matrix)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared)
               : "memory");
}

/// The same the other way round (compute capability 9.0).
__device__ __forceinline__ void store_matrices(std::uint32_t shared,
                                               const std::uint32_t (&matrix)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
               "r"(matrix[0]), "r"(matrix[1]), "r"(matrix[2]), "r"(matrix[3])
               : "memory");
#endif
}

/// The same four matrices, each transposed.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&matrix)[4],
                                                         std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared)
               : "memory");
}

/// c += A·B with elements of type T, Half or BFloat16.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<Half>(float (&c)[4], const std::uint32_t (&a)[4],
                                                   std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                                       std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats rounded to nearest even, `low` in the lower half.
template <class T>
__device__ __forceinline__ std::uint32_t pack_floats(float low, float high);

template <>
__device__ __forceinline__ std::uint32_t pack_floats<Half>(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

template <>
__device__ __forceinline__ std::uint32_t pack_floats<BFloat16>(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// 2^x by the special function unit: relative error below 2^-22, subnormal results become 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// 1/x by the special function unit: relative error below 2^-23 from 1 on, 0 for what is 2^126 and more.
__device__ __forceinline__ float reciprocal_approximate(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// The top bits of byte `byte` of x and of y, spread over the lower and the upper half-word: 0xffff
/// where set. `byte` is a constant.
__device__ __forceinline__ std::uint32_t spread_byte_signs(std::uint32_t x, std::uint32_t y,
                                                           int byte) {
  std::uint32_t mask;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(mask) : "r"(x), "r"(y), "r"(0xcc88 + 0x1111 * byte));
  return mask;
}

}  // namespace tenon::cuda
