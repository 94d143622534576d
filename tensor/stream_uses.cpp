#include "tensor/stream_uses.h"

#include <algorithm>

#include "tensor/device_backend.h"
#include "tensor/storage.h"

namespace tenon {

void WorkScope::add(Storage& storage, bool writes) {
  if (!storage.device().is_cpu()) uses_.push_back({&storage, writes});
}

void WorkScope::add(std::span<const MemoryUse> uses) {
  uses_.insert(uses_.end(), uses.begin(), uses.end());
}

void WorkScope::begin() {
  std::vector<int> indices;
  for (const MemoryUse& use : uses_) {
    const int index = use.storage->device().index;
    if (std::ranges::find(indices, index) == indices.end()) indices.push_back(index);
  }
  std::ranges::sort(indices);  // each stream has a lock
  for (const int index : indices) {
    device_backend(DeviceType::cuda).begin_work(index, uses_);
    devices_.push_back(index);
  }
}

WorkScope::~WorkScope() {
  for (const int index : devices_) device_backend(DeviceType::cuda).end_work(index, uses_);
}

}  // namespace tenon
