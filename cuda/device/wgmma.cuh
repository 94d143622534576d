// Warpgroup tensor core products of compute capability 9.0 (wgmma, sm_90a): four warps multiply their
// 64 rows, A fragments in registers, with a tile of B in shared memory, asynchronously.
//
//   wgmma_fence();                          // before the first product, and after A or C were written
//   wgmma_m64n64k16<T, kTransposed, kAccumulate>(c, a, wgmma_descriptor(address));
//   wgmma_commit();
//   wgmma_wait<kPending>(), then wgmma_settle(c) for each c that is read next
//
// Each warp holds 16 rows of A and of C, in the fragments of cuda/device/mma.cuh. A tile of B has rows
// of 64 elements (128 bytes), 16-byte chunks swizzled by an exclusive or with row mod 8, and starts at
// a multiple of 1024 bytes; what ordinary stores and cp.async wrote there needs fence_async_proxy().
// Dynamic shared memory starts at one where it is declared with that alignment: the compiler places
// it, as tests/cuda/device_code_test.py sees in its output.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tensor/dtype.h"

namespace tenon::cuda {

/// Whether the code being compiled may use these instructions.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif

/// Makes this thread's writes to shared memory visible to the tensor cores; a barrier follows.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// A swizzled tile whose groups of 8 rows are 1024 bytes apart (PTX ISA, "Matrix Descriptor"). Tiles
/// are one swizzled row wide, so that the other stride is not used.
__device__ __forceinline__ std::uint64_t wgmma_descriptor(std::uint32_t address) {
  constexpr std::uint64_t kGroup = 1024 >> 4;
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  return ((address & 0x3ffffU) >> 4) | (kGroup << 16) | (kGroup << 32) | kSwizzle128;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Closes the group of products that this warp has started.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most `kPending` groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps reads of `c` behind the wait before.
template <int kTiles>
__device__ __forceinline__ void wgmma_settle(float (&c)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
  }
}

/// Keeps A fragments in their registers up to the wait before.
template <int kCount>
__device__ __forceinline__ void wgmma_settle(std::uint32_t (&a)[kCount][2]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1])::"memory");
}

#define TENON_WGMMA_M64N64K16(type)                                                               \
  asm volatile(                                                                                   \
      "{ .reg .pred accumulate; setp.ne.b32 accumulate, %38, 0;"                                  \
      " wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "   \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, "  \
      "%36, accumulate, 1, 1, %37; }"                                                             \
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), \
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), \
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), \
        "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), \
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]), \
        "+f"(c[7][2]), "+f"(c[7][3])                                                              \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "n"(kTransposed ? 1 : 0),    \
        "n"(kAccumulate ? 1 : 0)                                                                  \
      : "memory")

/// c (64, 64) += a (64, 16)·B, or c = a·B, whatever c holds. B (16, 64) is the transpose of 64 rows of
/// the tile, 16 elements of each, or with kTransposed 16 whole rows. T is Half or BFloat16.
template <class T, bool kTransposed, bool kAccumulate>
__device__ __forceinline__ void wgmma_m64n64k16(float (&c)[8][4], const std::uint32_t (&a)[4],
                                                std::uint64_t descriptor) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (std::is_same_v<T, Half>) {
    TENON_WGMMA_M64N64K16("f16");
  } else {
    TENON_WGMMA_M64N64K16("bf16");
  }
#endif
}
#undef TENON_WGMMA_M64N64K16

/// The descriptor of a tile that is several swizzled rows wide, for kTransposed: each 64 columns are a
/// tile of their own, `bytes` after the one before.
__device__ __forceinline__ std::uint64_t wgmma_descriptor(std::uint32_t address,
                                                          std::uint32_t bytes) {
  constexpr std::uint64_t kOther = std::uint64_t{0x3fff} << 16;
  return (wgmma_descriptor(address) & ~kOther) | (std::uint64_t{bytes >> 4} << 16);
}

// The numbers of 32 accumulators, and 8 tiles of them as operands.
#define TENON_REGISTERS_0                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
  "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TENON_REGISTERS_32                                                      \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, " \
  "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63"
#define TENON_REGISTERS_64                                                      \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, " \
  "%79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, " \
  "%94, %95"
#define TENON_TILE(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define TENON_TILES(i)                                                                       \
  TENON_TILE(i), TENON_TILE(i + 1), TENON_TILE(i + 2), TENON_TILE(i + 3), TENON_TILE(i + 4), \
      TENON_TILE(i + 5), TENON_TILE(i + 6), TENON_TILE(i + 7)
#define TENON_WGMMA_SHARED(n, type, registers, a, b, transposed, accumulate, ...)            \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" registers \
               "}, " a ", " b ", " accumulate ", 1, 1, 0, " transposed ";"                   \
               : __VA_ARGS__                                                                 \
               : "l"(a_descriptor), "l"(b_descriptor), "n"(kTransposed ? 1 : 0),             \
                 "n"(kAccumulate ? 1 : 0)                                                    \
               : "memory")

/// c (64, kColumns) += A·B, or c = A·B, with 64 rows of 16 elements of a tile A and, as above, kColumns of
/// B in shared memory. kColumns is 64, 128 or 192; T is Half or BFloat16.
template <class T, int kColumns, bool kTransposed, bool kAccumulate = true>
__device__ __forceinline__ void wgmma_shared(float (&c)[kColumns / 8][4],
                                             std::uint64_t a_descriptor,
                                             std::uint64_t b_descriptor) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 192);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TENON_WGMMA_64(type) \
  TENON_WGMMA_SHARED("64", type, TENON_REGISTERS_0, "%32", "%33", "%34", "%35", TENON_TILES(0))
#define TENON_WGMMA_128(type)                                                                     \
  TENON_WGMMA_SHARED("128", type, TENON_REGISTERS_0 ", " TENON_REGISTERS_32, "%64", "%65", "%66", \
                     "%67", TENON_TILES(0), TENON_TILES(8))
#define TENON_WGMMA_192(type)                                                                  \
  TENON_WGMMA_SHARED("192", type,                                                              \
                     TENON_REGISTERS_0 ", " TENON_REGISTERS_32 ", " TENON_REGISTERS_64, "%96", \
                     "%97", "%98", "%99", TENON_TILES(0), TENON_TILES(8), TENON_TILES(16))
  if constexpr (kColumns == 64 && std::is_same_v<T, Half>) {
    TENON_WGMMA_64("f16");
  } else if constexpr (kColumns == 64) {
    TENON_WGMMA_64("bf16");
  } else if constexpr (kColumns == 128 && std::is_same_v<T, Half>) {
    TENON_WGMMA_128("f16");
  } else if constexpr (kColumns == 128) {
    TENON_WGMMA_128("bf16");
  } else if constexpr (std::is_same_v<T, Half>) {
    TENON_WGMMA_192("f16");
  } else {
    TENON_WGMMA_192("bf16");
  }
#undef TENON_WGMMA_64
#undef TENON_WGMMA_128
#undef TENON_WGMMA_192
#endif
}
#undef TENON_REGISTERS_0
#undef TENON_REGISTERS_32
#undef TENON_REGISTERS_64
#undef TENON_TILE
#undef TENON_TILES
#undef TENON_WGMMA_SHARED

}  // namespace tenon::cuda
