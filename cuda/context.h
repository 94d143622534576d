// What Tenon holds of one GPU: its stream, its allocator and the workspace of matrix products. A
// context is made at the first use of its device and lives until the process ends.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/allocator.h"
#include "cuda/handle.h"
#include "cuda/launch.h"

namespace tenon::cuda {

/// cuBLASLt's recommendation for Hopper.
inline constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

class DeviceContext {
 public:
  explicit DeviceContext(int index);
  Stream stream() const { return {stream_.get(), index_}; }
  CachingAllocator& allocator() { return allocator_; }
  /// kWorkspaceBytes of memory for the kernels of this device's stream, made at the first call.
  void* workspace();
  /// Where captured work reads the forward number; made at the first call. One will do: all work of a
  /// device runs on one stream, and each launch writes the cell first.
  std::uint32_t* forward_cell();

 private:
  int index_;
  StreamHandle stream_;
  CachingAllocator allocator_;
  std::once_flag workspace_made_;
  void* workspace_ = nullptr;
  std::once_flag cell_made_;
  std::uint32_t* forward_cell_ = nullptr;
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
/// The context if it was made already, else null; touches no driver.
DeviceContext* existing_context(int index) noexcept;

}  // namespace tenon::cuda
