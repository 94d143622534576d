#include "tensor/stream_uses.h"

#include <bit>

#include "tensor/device_backend.h"
#include "tensor/storage.h"

namespace tenon {

void WorkScope::add(Storage& storage, bool writes) {
  if (storage.device().is_cpu()) return;
  if (uses_.empty()) uses_.reserve(8);
  uses_.push_back({&storage, writes});
}

void WorkScope::add(std::span<const MemoryUse> uses) {
  uses_.insert(uses_.end(), uses.begin(), uses.end());
}

void WorkScope::begin() {
  std::uint64_t devices = 0;
  for (const MemoryUse& use : uses_) {
    devices |= std::uint64_t{1} << use.storage->device().index;
  }
  // From the first device to the last: each stream has a lock.
  for (; devices != 0; devices &= devices - 1) {
    device_backend(DeviceType::cuda).begin_work(std::countr_zero(devices), uses_);
    begun_ |= devices & -devices;
  }
}

WorkScope::~WorkScope() {
  for (; begun_ != 0; begun_ &= begun_ - 1) {
    device_backend(DeviceType::cuda).end_work(std::countr_zero(begun_), uses_);
  }
}

}  // namespace tenon
