#include "tensor/storage.h"

#include "tensor/device_backend.h"

namespace tenon {

std::shared_ptr<Storage> Storage::allocate(std::size_t bytes, Device device) {
  require_available(device);
  DeviceBackend& backend = device_backend(device.type);
  void* data = bytes == 0 ? nullptr : backend.allocate(bytes, device.index);
  std::shared_ptr<Storage> storage(new Storage(data, bytes, device, nullptr));
  if (data != nullptr) backend.mark_allocated(device.index, storage->uses_);
  return storage;
}

std::shared_ptr<Storage> Storage::borrow(void* data, std::size_t bytes, Device device,
                                         std::shared_ptr<void> owner) {
  return std::shared_ptr<Storage>(new Storage(data, bytes, device, std::move(owner)));
}

Storage::~Storage() {
  if (data_ != nullptr && owner_ == nullptr) {
    device_backend(device_.type).free(data_, bytes_, device_.index, uses_);
  }
}

}  // namespace tenon
