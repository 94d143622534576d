#include "cuda/device_limits.h"

#include <map>
#include <mutex>

#include "cuda/check.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

DeviceLimits ask_driver(int device) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    TENON_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  return {.major = attribute(cudaDevAttrComputeCapabilityMajor),
          .minor = attribute(cudaDevAttrComputeCapabilityMinor),
          .multiprocessors = attribute(cudaDevAttrMultiProcessorCount),
          .shared_of_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          .shared_of_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

}  // namespace

const DeviceLimits& device_limits(int device) {
  // Never destroyed: kernels are launched until the process ends. Elements of a map do not move.
  static auto* mutex = new std::mutex;
  static auto* known = new std::map<int, DeviceLimits>;
  const std::lock_guard lock(*mutex);
  const auto found = known->find(device);
  if (found != known->end()) return found->second;
  return known->emplace(device, ask_driver(device)).first->second;
}

bool has_wgmma(const DeviceLimits& limits) {
#if defined(TENON_HAS_SM90A)
  return limits.major == 9 && limits.minor == 0;
#else
  static_cast<void>(limits);
  return false;
#endif
}

void require_shared_memory(const char* name, std::size_t bytes, const DeviceLimits& limits) {
  TENON_INTERNAL(bytes <= static_cast<std::size_t>(limits.shared_of_block),
                 "[{}] a block asks for {} bytes of shared memory; a GPU of compute capability "
                 "{}.{} has {}",
                 name, bytes, limits.major, limits.minor, limits.shared_of_block);
}

}  // namespace tenon::cuda
