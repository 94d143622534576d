#include "cuda/launch.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/check.h"
#include "cuda/device_limits.h"
#include "cuda/launch_cluster.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

/// Any kernel gets 48 KiB of shared memory; what it declares itself counts too.
constexpr std::size_t kDefaultSharedBytes = 32 << 10;

bool synchronous_launches() {
  static const bool on = [] {
    const char* value = std::getenv("TENON_CUDA_SYNC");
    return value != nullptr && *value == '1';
  }();
  return on;
}

/// Blocks get more dynamic shared memory only after the kernel's limit was raised.
void raise_shared_limit(Stream stream, const char* name, const void* kernel, std::size_t bytes) {
  const DeviceLimits& device = device_limits(stream.device);
  require_shared_memory(name, bytes, device);
  static std::mutex mutex;
  static auto* limits = new std::map<std::pair<const void*, int>, std::size_t>;
  const std::lock_guard lock(mutex);
  std::size_t& limit = (*limits)[{kernel, stream.device}];
  if (bytes <= limit) return;  // never lowered: a graph may hold a launch with the larger size
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status == cudaErrorInvalidValue) {  // too much beside what the kernel declares
    cudaFuncAttributes attributes{};
    cudaGetLastError();
    TENON_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
    require_shared_memory(name, bytes + attributes.sharedSizeBytes, device);
  }
  check(status, name);
  limit = bytes;
}

/// Checks a launch, and with TENON_CUDA_SYNC=1 waits for it.
void finish_launch(Stream stream, const char* name, cudaError_t status) {
  check(status, name);
  check(cudaPeekAtLastError(), name);
  if (!synchronous_launches()) return;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  TENON_CUDA_CHECK(cudaStreamIsCapturing(stream.handle, &capture));
  if (capture == cudaStreamCaptureStatusNone) check(cudaStreamSynchronize(stream.handle), name);
}

}  // namespace

GridShape fold_blocks(std::int64_t blocks) {
  if (blocks <= kMaxGridX) return {static_cast<unsigned>(blocks), 1};
  constexpr std::int64_t kFoldedX = std::int64_t{1} << 30;
  const std::int64_t rows = ceil_div(blocks, kFoldedX);
  TENON_CHECK(rows <= kMaxGridY, ValueError, "a launch of {} blocks; the limit is {}", blocks,
              kFoldedX * kMaxGridY);
  return {static_cast<unsigned>(kFoldedX), static_cast<unsigned>(rows)};
}

void launch_kernel(Stream stream, const char* name, const void* kernel, const LaunchShape& shape,
                   void** arguments) {
  if (shape.blocks == 0) return;
  TENON_INTERNAL(shape.blocks > 0 && shape.threads > 0, "launch of {} with {} blocks of {} threads",
                 name, shape.blocks, shape.threads);
  require_alive();
  use_device(stream.device);
  if (shape.shared_bytes > kDefaultSharedBytes) {
    raise_shared_limit(stream, name, kernel, shape.shared_bytes);
  }
  const GridShape grid = fold_blocks(shape.blocks);
  const cudaError_t status =
      cudaLaunchKernel(kernel, dim3(grid.x, grid.y), dim3(static_cast<unsigned>(shape.threads)),
                       arguments, shape.shared_bytes, stream.handle);
  finish_launch(stream, name, status);
}

void launch_cluster_kernel(Stream stream, const char* name, const void* kernel,
                           const LaunchShape& shape, int cluster, void** arguments) {
  if (shape.blocks == 0) return;
  TENON_INTERNAL(cluster > 0 && shape.blocks % cluster == 0 && shape.blocks <= kMaxGridX,
                 "launch of {} with {} blocks in clusters of {}", name, shape.blocks, cluster);
  require_alive();
  use_device(stream.device);
  if (shape.shared_bytes > kDefaultSharedBytes) {
    raise_shared_limit(stream, name, kernel, shape.shared_bytes);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream.handle;
  config.attrs = &attribute;
  config.numAttrs = 1;
  finish_launch(stream, name, cudaLaunchKernelExC(&config, kernel, arguments));
}

}  // namespace tenon::cuda
