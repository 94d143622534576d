// What Tenon holds of one GPU: the streams of its threads and its allocator. A context is made at
// the first use of its device and lives until the process ends.
//
// When the process ends, threads that still run are stopped at their next call of the device, since
// the driver is taken down under them. After a fork the child's calls throw DeviceLost: a CUDA
// context does not survive one.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/allocator.h"
#include "cuda/launch.h"
#include "cuda/work_stream.h"

namespace tenon::cuda {

/// cuBLASLt's recommendation for Hopper.
inline constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

class DeviceContext {
 public:
  explicit DeviceContext(int index) : streams_(index), allocator_(streams_) {}
  StreamPool& streams() { return streams_; }
  /// The stream of this thread, and where its launches go.
  WorkStream& work_stream() { return streams_.of_this_thread(); }
  Stream stream() { return {work_stream().launches(), streams_.device()}; }
  CachingAllocator& allocator() { return allocator_; }

 private:
  StreamPool streams_;
  CachingAllocator allocator_;
};

/// What the driver says about this machine; asked once.
struct DeviceProbe {
  int count = 0;
  std::string reason;  // why count is 0
};
const DeviceProbe& probe_devices();

/// The context of device `index`, made if need be; it also becomes the calling thread's device.
/// DeviceError when there is no such device, DeviceLost after a sticky error.
DeviceContext& device_context(int index);
/// Has other threads stopped when the process ends, before what is loaded or made by now is torn
/// down. To be called again whenever a library may just have made something of its own.
void stop_other_threads_at_exit();
/// The context if it was made already, else null; touches no driver.
DeviceContext* existing_context(int index) noexcept;

}  // namespace tenon::cuda
