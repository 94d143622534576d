// What a GPU gives to a block of threads. Plans of launches take it as an argument, so that they
// can be asked about GPUs that are not there.
#pragma once

#include <cstddef>

namespace tenon::cuda {

/// Shared memory is in bytes.
struct DeviceLimits {
  int major = 0;  // of the compute capability
  int minor = 0;
  int multiprocessors = 0;
  int shared_of_block = 0;           // at most, what a kernel declares and what is dynamic together
  int shared_of_multiprocessor = 0;  // the system takes 1 KiB of it for each block
};

/// The limits of a device, which the driver is asked for once. Any thread may call.
const DeviceLimits& device_limits(int device);

/// Whether wgmma and the copy engine can be used: on compute capability 9.0, where this build has
/// code for them.
bool has_wgmma(const DeviceLimits& limits);

/// InternalError where a block of kernel `name` asks for more shared memory than there is.
void require_shared_memory(const char* name, std::size_t bytes, const DeviceLimits& limits);

}  // namespace tenon::cuda
