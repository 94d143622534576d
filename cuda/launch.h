// Kernel launches. Blocks are counted in one 64-bit number; grids that would overflow an axis are
// folded, and the kernel gets the number back from block_index():
//
//   __global__ void scale_kernel(float* x, std::int64_t n) {
//     const std::int64_t i = block_index() * blockDim.x + threadIdx.x;
//     if (i < n) x[i] *= 2;
//   }
//   launch(stream, "scale", scale_kernel, ceil_div(n, 256), 256, 0, x, n);
//
// Folded grids have surplus blocks: a kernel must compare its index with the count. With
// TENON_CUDA_SYNC=1 each launch is waited for, so that an error names the kernel it came from.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace tenon::cuda {

/// Where work is queued.
struct Stream {
  cudaStream_t handle = nullptr;
  int device = 0;
};

/// The stream of a kernel call; `Args` is KernelArgs, a template so that this header stays light.
template <class Args>
Stream stream_of(const Args& args) {
  return {static_cast<cudaStream_t>(args.stream), args.outputs[0].device.index};
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline constexpr std::int64_t kMaxGridX = 2147483647;
inline constexpr std::int64_t kMaxGridY = 65535;

struct GridShape {
  unsigned x = 1;
  unsigned y = 1;
};

/// The smallest grid of at least `blocks` >= 1 blocks; ValueError beyond 2^30 · 65535.
GridShape fold_blocks(std::int64_t blocks);

#if defined(__CUDACC__)
/// The number of this block among those that were launched; surplus blocks have larger ones.
__device__ __forceinline__ std::int64_t block_index() {
  return static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
}
#endif

struct LaunchShape {
  std::int64_t blocks = 0;
  int threads = 0;
  std::size_t shared_bytes = 0;  // dynamic shared memory, above 48 KiB too
};

/// Launches `kernel` with `arguments`, pointers to its parameters; checks the launch. InternalError
/// where a block asks for more shared memory than the device has.
void launch_kernel(Stream stream, const char* name, const void* kernel, const LaunchShape& shape,
                   void** arguments);

/// Launches a kernel of any signature; nothing is launched for 0 blocks.
template <class... P>
void launch(Stream stream, const char* name, void (*kernel)(P...), std::int64_t blocks, int threads,
            std::size_t shared_bytes, const std::type_identity_t<P>&... parameters) {
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&parameters))...};
  launch_kernel(stream, name, reinterpret_cast<const void*>(kernel),
                {blocks, threads, shared_bytes}, arguments);
}

}  // namespace tenon::cuda
