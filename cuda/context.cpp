#include "cuda/context.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>

#include "cuda/check.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

// Never destroyed: the driver may be gone before the last static object is.
std::array<std::atomic<DeviceContext*>, kMaxDevices> contexts{};
std::mutex contexts_mutex;

constexpr std::chrono::seconds kExitPatience{2};

/// Lets other threads begin no more work, once what they are queueing is queued.
void stop_other_threads() noexcept {
  static std::atomic<bool> is_done{false};
  if (is_done.exchange(true)) return;
  for (const auto& slot : contexts) {
    DeviceContext* context = slot.load(std::memory_order_acquire);
    if (context == nullptr) continue;
    for (int number = 0; number < kMaxStreams; ++number) {
      WorkStream* stream = context->streams().find(number);
      if (stream != nullptr) static_cast<void>(stream->mutex().try_lock_for(kExitPatience));
    }
  }
  begin_exit();
}

}  // namespace

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
    if (result.count > 0) {  // the driver is in use from here on
      refuse_after_fork();
      stop_other_threads_at_exit();
    }
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
  if (slot.load() == nullptr) slot.store(new DeviceContext(index), std::memory_order_release);
  return *slot.load();
}

void stop_other_threads_at_exit() {
  // The latest handler runs first. A library's own objects that it makes at a first call are torn
  // down by handlers that are registered then.
  static_cast<void>(std::atexit(stop_other_threads));
}

DeviceContext* existing_context(int index) noexcept {
  if (index < 0 || index >= kMaxDevices) return nullptr;
  return contexts[static_cast<std::size_t>(index)].load(std::memory_order_acquire);
}

}  // namespace tenon::cuda
