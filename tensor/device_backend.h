// What a kind of device must offer. The CPU's is built in; cuda/ registers its own. Each thread
// queues work on a stream of its own, in whose order it runs; between threads WorkScope orders it,
// by the memory that it uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/device.h"
#include "tensor/stream_uses.h"

namespace tenon {

/// Bytes on one device: handed out and in use, kept for reuse, and the most ever in use.
struct MemoryStats {
  std::size_t live = 0;
  std::size_t cached = 0;
  std::size_t peak = 0;
};

/// Work that was recorded once and is launched as a whole: a CUDA graph.
class CapturedWork {
 public:
  virtual ~CapturedWork() = default;
  /// Queues the work; its kernels read `forward` from the cell that `capture` gave them.
  virtual void launch(std::uint32_t forward) = 0;
};

/// When a piece of work ran, in µs of device time.
struct WorkTime {
  double start = 0;
  double duration = 0;
};

class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;
  /// How many such devices this machine has; 0 when the driver or the hardware is missing.
  virtual int device_count() const = 0;
  /// Why device_count() is 0, in the driver's words; empty when it is not.
  virtual std::string unavailable_reason() const { return {}; }
  /// "NVIDIA H200", "CPU (2 threads)".
  virtual std::string device_name(int index) const = 0;
  /// Memory aligned to 256 bytes, in the order of this thread's stream; throws OutOfMemory. `bytes`
  /// > 0.
  virtual void* allocate(std::size_t bytes, int index) = 0;
  /// Gives memory back that only this thread's stream used; never throws.
  virtual void free(void* data, std::size_t bytes, int index) noexcept = 0;
  /// Gives memory back, to be used again after `uses`; never throws.
  virtual void free(void* data, std::size_t bytes, int index, const StreamUses& /*uses*/) noexcept {
    free(data, bytes, index);
  }
  /// Notes that this thread just allocated the memory.
  virtual void mark_allocated(int /*index*/, StreamUses& /*uses*/) {}
  /// Orders this thread's stream after earlier work of other streams on the memory of device
  /// `index` among `uses`, and keeps threads that share the stream out until end_work. See
  /// WorkScope.
  virtual void begin_work(int /*index*/, std::span<const MemoryUse> /*uses*/) {}
  virtual void end_work(int /*index*/, std::span<const MemoryUse> /*uses*/) noexcept {}
  /// Copies between this device and the host or within the device, in stream order. A copy from
  /// the device to the host has finished when this returns.
  virtual void copy(void* target, Device target_device, const void* source, Device source_device,
                    std::size_t bytes) = 0;
  /// Waits for all work of the device, whichever thread queued it; throws what that work failed
  /// with.
  virtual void synchronize(int index) = 0;
  /// The stream that this thread launches on, as kernels get it in KernelArgs.
  virtual void* stream(int index) = 0;
  /// Runs `work` and returns how many kernels it launched on this device, copies not counted.
  virtual std::int64_t count_kernels(int index, const std::function<void()>& work) = 0;
  /// Milliseconds of device time that `work` takes.
  virtual double time_ms(int index, const std::function<void()>& work) = 0;
  /// Times pieces of work that run one after another; starts count from the first. A device that is
  /// fed by a queue is held back until all is queued, so that host time does not show.
  virtual std::vector<WorkTime> time_each(int index,
                                          std::span<const std::function<void()>> work) = 0;
  /// Records what `work` launches instead of running it; null where the device has no such thing.
  /// `work` gets the device memory that RandomState::forward_cell shall point to. What other
  /// threads launch meanwhile is not recorded. The record belongs to this thread's stream().
  virtual std::unique_ptr<CapturedWork> capture(
      int /*index*/, const std::function<void(const std::uint32_t* forward_cell)>& /*work*/) {
    return nullptr;
  }
  /// Names what this thread launches from here to pop_range() for a profiler that is attached (NVTX).
  virtual void push_range(const char* /*name*/) noexcept {}
  virtual void pop_range() noexcept {}
  virtual MemoryStats memory_stats(int index) const = 0;
  /// Starts memory_stats().peak again from what is live now.
  virtual void reset_peak(int index) = 0;
};

/// A named range of launches, as long as it lives.
class ProfilerRange {
 public:
  ProfilerRange(DeviceBackend& backend, const char* name) noexcept : backend_(backend) {
    backend_.push_range(name);
  }
  ~ProfilerRange() { backend_.pop_range(); }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;

 private:
  DeviceBackend& backend_;
};

/// The backend of a kind of device; DeviceError that says what is missing when there is none.
DeviceBackend& device_backend(DeviceType type);
/// True when `device` exists on this machine.
bool is_available(Device device);
/// Throws DeviceError with the reason unless `device` exists.
void require_available(Device device);
/// Called once by a device layer at start-up.
void register_device_backend(DeviceType type, std::unique_ptr<DeviceBackend> backend);
/// Waits for all work on `device`.
void synchronize(Device device);

}  // namespace tenon
