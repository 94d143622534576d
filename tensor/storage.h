// A reference-counted block of device memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "tensor/device.h"
#include "tensor/stream_uses.h"

namespace tenon {

/// Owns `bytes` bytes on a device, aligned to 256 bytes. Freed through the device's backend.
class Storage {
 public:
  /// Uninitialized memory; OutOfMemory when it does not fit, DeviceError without such a device.
  static std::shared_ptr<Storage> allocate(std::size_t bytes, Device device);
  /// Memory that somebody else owns and keeps alive through `owner`.
  static std::shared_ptr<Storage> borrow(void* data, std::size_t bytes, Device device,
                                         std::shared_ptr<void> owner);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  /// Counts writes in place: backward refuses a saved value whose storage was written since.
  std::uint64_t version() const { return version_.load(std::memory_order_relaxed); }
  void bump_version() { version_.fetch_add(1, std::memory_order_relaxed); }
  /// Of device memory: the streams that used it. See WorkScope.
  StreamUses& uses() { return uses_; }

 private:
  Storage(void* data, std::size_t bytes, Device device, std::shared_ptr<void> owner)
      : data_(data), bytes_(bytes), device_(device), owner_(std::move(owner)) {}
  void* data_;
  std::size_t bytes_;
  Device device_;
  std::atomic<std::uint64_t> version_{0};
  std::shared_ptr<void> owner_;  // set for borrowed memory
  StreamUses uses_;
};

}  // namespace tenon
