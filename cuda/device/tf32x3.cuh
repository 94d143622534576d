// Products of float32 matrices on tensor cores (compute capability 8.0), at the accuracy of float32.
//
// Tensor cores multiply TF32 numbers, floats of 11 significant bits, and add in float32. A float is cut
// into two of them, x = large + small, and a product of floats is three of theirs:
//   a·b = a.large·b.large + (a.large·b.small + a.small·b.large)      |rest| < 2^-21 |a·b|
// So this is float32 arithmetic and not a "TF32 mode" (H. Ootomo, R. Yokota, "Recovering single
// precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance", 2022).
// As in that paper, tensor cores only add up a few dozen terms, because they cut off what does not fit
// instead of rounding it: longer sums are made of such parts by ordinary additions.
//
// Fragments of one warp, lane = 4·g + t (PTX ISA, "Matrix Fragments for mma.m16n8k8"):
//   A (16 x 8, row): a[0] = (g, t)  a[1] = (g+8, t)  a[2] = (g, t+4)  a[3] = (g+8, t+4)
//   B (8 x 8, col):  b[0] = (k t, n g)               b[1] = (k t+4, n g)
//   C (16 x 8):      c[0], c[1] = (g, 2t..2t+1)      c[2], c[3] = (g+8, 2t..2t+1)
#pragma once

#include <cmath>
#include <cstdint>

namespace tenon::cuda {

struct SplitA {
  std::uint32_t large[4], small[4];
};
struct SplitB {
  std::uint32_t large[2], small[2];
};

/// What the tensor cores read of a float: they ignore the 13 lowest bits.
__device__ __forceinline__ float tf32_part(float x) {
  return __uint_as_float(__float_as_uint(x) & 0xffffe000U);
}

/// Cuts x after adding what is cut off on average, so that small parts have no preferred sign. NaN and
/// Inf stay in the large part, which is Inf from 2^128·(1 - 2^-11) on.
__device__ __forceinline__ void split(float x, std::uint32_t& large, std::uint32_t& small) {
  constexpr float kMeanCut = 0x1.6p-12F;  // log(2)·2^-11, relative to x
  const float part = tf32_part(x * (1.0F + kMeanCut));
  large = __float_as_uint(part);
  small = __float_as_uint(x - part);
}

__device__ __forceinline__ SplitA split_a(float a0, float a1, float a2, float a3) {
  SplitA a;
  split(a0, a.large[0], a.small[0]);
  split(a1, a.large[1], a.small[1]);
  split(a2, a.large[2], a.small[2]);
  split(a3, a.large[3], a.small[3]);
  return a;
}

/// Cuts without rounding, which takes one operation less: one operand with small parts of either sign
/// is enough for their products to cancel.
__device__ __forceinline__ SplitB split_b(float b0, float b1) {
  return {{__float_as_uint(b0), __float_as_uint(b1)},
          {__float_as_uint(b0 - tf32_part(b0)), __float_as_uint(b1 - tf32_part(b1))}};
}

/// c += A·B of TF32 numbers.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&c)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// A C fragment that grows by A·B; its two parts are added at the end.
struct SplitC {
  float large[4], small[4];

  __device__ __forceinline__ void add_product(const SplitA& a, const SplitB& b) {
    mma_m16n8k8_tf32(small, a.large, b.small);
    mma_m16n8k8_tf32(small, a.small, b.large);
    mma_m16n8k8_tf32(large, a.large, b.large);
  }

  /// Inf - Inf and 0·Inf make the small parts NaN where the float32 result is Inf; the large part is
  /// then that result.
  __device__ __forceinline__ float total(int i) const {
    return fabsf(large[i]) < INFINITY ? large[i] + small[i] : large[i];
  }
};

}  // namespace tenon::cuda
