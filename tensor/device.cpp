#include "tensor/device.h"

#include <array>
#include <charconv>

#include "tensor/device_backend.h"
#include "tensor/support/check.h"
#include "tensor/support/seams.h"

namespace tenon {
namespace {

std::array<std::unique_ptr<DeviceBackend>, kNumDeviceTypes>& backends() {
  // Never destroyed: threads may outlive main, and so may tensors in static variables.
  static auto& table = *new std::array<std::unique_ptr<DeviceBackend>, kNumDeviceTypes>;
  return table;
}

}  // namespace

std::unique_ptr<DeviceBackend> make_cpu_backend();  // tensor/cpu_backend.cpp

namespace {

/// Fills the table once; explicit calls, since linkers drop objects that only hold an initializer.
void register_builtin_backends() {
  static const bool done = [] {
    register_device_backend(DeviceType::cpu, make_cpu_backend());
#if defined(TENON_WITH_CUDA)
    cuda::register_backend();
#endif
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

Device Device::parse(std::string_view text) {
  const std::string_view kind = text.substr(0, text.find(':'));
  Device device;
  if (kind == "cuda") {
    device.type = DeviceType::cuda;
  } else {
    TENON_CHECK(kind == "cpu", DeviceError, "unknown device '{}'; needed cpu, cuda or cuda:N",
                text.substr(0, 40));
  }
  if (kind.size() < text.size()) {
    const std::string_view digits = text.substr(kind.size() + 1);
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), device.index);
    TENON_CHECK(error == std::errc() && end == digits.data() + digits.size() && device.index >= 0 &&
                    (device.is_cuda() || device.index == 0),
                DeviceError, "unknown device '{}'; needed cpu, cuda or cuda:N", text.substr(0, 40));
  }
  return device;
}

std::string Device::to_string() const { return is_cpu() ? "cpu" : "cuda:" + std::to_string(index); }

void register_device_backend(DeviceType type, std::unique_ptr<DeviceBackend> backend) {
  backends()[static_cast<std::size_t>(type)] = std::move(backend);
}

DeviceBackend& device_backend(DeviceType type) {
  register_builtin_backends();
  const auto& backend = backends()[static_cast<std::size_t>(type)];
  TENON_CHECK(backend != nullptr, DeviceError,
              "no CUDA device: this build of Tenon is CPU-only (nvcc was not found when it was "
              "configured)");
  return *backend;
}

bool is_available(Device device) {
  register_builtin_backends();
  const auto& backend = backends()[static_cast<std::size_t>(device.type)];
  return backend != nullptr && device.index < backend->device_count();
}

void require_available(Device device) {
  const DeviceBackend& backend = device_backend(device.type);
  const int count = backend.device_count();
  TENON_CHECK(count > 0, DeviceError, "no CUDA device: {}; {} was asked for, use cpu",
              backend.unavailable_reason(), device.to_string());
  TENON_CHECK(device.index < count, DeviceError, "device {} does not exist; this machine has {}",
              device.to_string(), count);
}

void synchronize(Device device) { device_backend(device.type).synchronize(device.index); }

}  // namespace tenon
