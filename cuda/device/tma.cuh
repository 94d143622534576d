// The Tensor Memory Accelerator of compute capability 9.0 and the barriers in shared memory that say
// when its copies have come (PTX ISA, "cp.async.bulk.tensor" and "mbarrier").
//
//   barrier_init(full, 1);                       // one thread; then fence_barrier_init, __syncthreads
//   barrier_expect(full, kBytes);                // one thread: the phase ends when kBytes have come
//   copy_tensor_async(tile, map, column, row, full);
//   barrier_wait(full, parity);                  // all who read the tile; parity 0, 1, 0, …
//
// A lane may arrive for its warp only when all lanes have waited and read: behind __syncwarp, or an
// instruction of the whole warp (.sync.aligned) that has what was read as an operand. A parity
// tells two rounds apart, so a lane that was left behind by two of them waits for ever.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace tenon::cuda {

inline constexpr int kBarrierBytes = 8;

/// A barrier whose phases end after `arrivals` arrivals and all bytes that were announced.
__device__ __forceinline__ void barrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Shows initialized barriers to the copy engine; a barrier of the block follows.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// How often a warp arrives where one lane does for all. racecheck takes an arrival for the lane's
/// own alone: under TENON_CHECK_RACES, which is for that tool, each lane arrives.
#if defined(TENON_CHECK_RACES)
inline constexpr int kWarpArrivals = 32;
#else
inline constexpr int kWarpArrivals = 1;
#endif

/// Arrives for the warp, by the rule above.
__device__ __forceinline__ void barrier_arrive_for_warp(std::uint32_t barrier, int lane) {
  if (lane < kWarpArrivals) barrier_arrive(barrier);
}

/// Arrives, and announces bytes that copies will bring.
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Waits for the end of the phase of that parity; phases are numbered from 0.
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  do {
    asm volatile(
        "{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;"
        " selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

/// Whether the phase of that parity has ended; what came before its end may be read then.
__device__ __forceinline__ bool barrier_ended(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{ .reg .pred done; mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;"
      " selp.u32 %0, 1, 0, done; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// A position in a ring of kStages stages, each with a barrier; rounds alternate parity.
template <int kStages>
struct RingPosition {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1U;
    }
  }
  __device__ __forceinline__ void skip(int count) {
    const int rounds = (stage + count) / kStages;
    stage = (stage + count) % kStages;
    parity ^= static_cast<std::uint32_t>(rounds) & 1U;
  }
};

/// Starts the copy of one box of a matrix (cuda/tensor_map.h) to shared memory; what lies outside of
/// the matrix comes as zeros, and counts as bytes all the same.
__device__ __forceinline__ void copy_tensor_async(std::uint32_t shared, const CUtensorMap& map,
                                                  int column, int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

/// The same for a box of an array of five axes.
__device__ __forceinline__ void copy_tensor_async(std::uint32_t shared, const CUtensorMap& map,
                                                  const int (&at)[5], std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(shared),
      "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(barrier)
      : "memory");
}

/// Starts a copy of `bytes`, a multiple of 16, between addresses that are multiples of 16.
__device__ __forceinline__ void copy_bytes_async(std::uint32_t shared, const void* global,
                                                 std::uint32_t bytes, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Starts to store a box from shared memory, which fence_async_proxy and a barrier have shown to the
/// copy engine; what lies outside of the matrix is left out.
__device__ __forceinline__ void store_tensor_async(const CUtensorMap& map, std::uint32_t shared,
                                                   int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
      "r"(shared), "r"(column), "r"(row)
      : "memory");
}

/// Closes the group of stores that this thread has started.
__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Waits until at most `kPending` groups of this thread's stores still read shared memory.
template <int kPending>
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

/// Gives back registers, or takes them, for all of a warpgroup; kCount is a multiple of 8.
template <int kCount>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace tenon::cuda
