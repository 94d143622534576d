#include "cuda/context.h"

#include <array>
#include <atomic>
#include <mutex>

#include "cuda/check.h"
#include "tensor/detail/check.h"

namespace tenon::cuda {
namespace {

constexpr int kMaxDevices = 64;
// Never destroyed: the driver may be gone before the last static object is.
std::array<std::atomic<DeviceContext*>, kMaxDevices> contexts{};
std::mutex contexts_mutex;

StreamHandle make_stream_on(int index) {
  use_device(index);
  return make_stream();
}

}  // namespace

DeviceContext::DeviceContext(int index)
    : index_(index), stream_(make_stream_on(index)), allocator_(index, stream_.get()) {}

void* DeviceContext::workspace() {
  std::call_once(workspace_made_,
                 [this] { workspace_ = allocator_.allocate_permanent(kWorkspaceBytes); });
  return workspace_;
}

std::uint32_t* DeviceContext::forward_cell() {
  std::call_once(cell_made_, [this] {
    forward_cell_ =
        static_cast<std::uint32_t*>(allocator_.allocate_permanent(sizeof(*forward_cell_)));
  });
  return forward_cell_;
}

const DeviceProbe& probe_devices() {
  static const DeviceProbe probe = [] {
    DeviceProbe result;
    const cudaError_t status = cudaGetDeviceCount(&result.count);
    if (status != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      result.count = 0;
      result.reason = fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
    } else if (result.count == 0) {
      result.reason = "the driver reports no GPU";
    }
    result.count = std::min(result.count, kMaxDevices);
    return result;
  }();
  return probe;
}

DeviceContext& device_context(int index) {
  require_alive();
  const DeviceProbe& probe = probe_devices();
  TENON_CHECK(probe.count > 0, DeviceError, "no CUDA device: {}", probe.reason);
  TENON_CHECK(index >= 0 && index < probe.count, DeviceError,
              "device cuda:{} does not exist; this machine has {}", index, probe.count);
  use_device(index);
  auto& slot = contexts[static_cast<std::size_t>(index)];
  if (DeviceContext* context = slot.load(std::memory_order_acquire)) return *context;
  const std::lock_guard lock(contexts_mutex);
  if (slot.load() == nullptr) slot.store(new DeviceContext(index));
  return *slot.load();
}

DeviceContext* existing_context(int index) noexcept {
  if (index < 0 || index >= kMaxDevices) return nullptr;
  return contexts[static_cast<std::size_t>(index)].load(std::memory_order_acquire);
}

}  // namespace tenon::cuda
