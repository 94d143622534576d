// A stand-in for a GPU in builds without CUDA: memory of the host under another device's name, and the
// CPU's kernels. What moves between devices can then be tested anywhere, in a program of its own.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "tensor/device_backend.h"
#include "tensor/op.h"

namespace tenon::test {

class FakeCuda final : public DeviceBackend {
 public:
  int device_count() const override { return 2; }
  std::string device_name(int) const override { return "fake"; }
  void* allocate(std::size_t bytes, int) override {
    return ::operator new (bytes, std::align_val_t{256});
  }
  void free(void* data, std::size_t, int) noexcept override {
    ::operator delete (data, std::align_val_t{256});
  }
  void copy(void* target, Device, const void* source, Device, std::size_t bytes) override {
    std::memcpy(target, source, bytes);
    ++copies;
  }
  void synchronize(int) override {}
  void* stream(int) override { return nullptr; }
  std::int64_t count_kernels(int, const std::function<void()>& work) override {
    work();
    return 0;
  }
  double time_ms(int, const std::function<void()>& work) override {
    work();
    return 0;
  }
  std::vector<WorkTime> time_each(int, std::span<const std::function<void()>> work) override {
    for (const auto& piece : work) piece();
    return std::vector<WorkTime>(work.size());
  }
  MemoryStats memory_stats(int) const override { return {}; }
  void reset_peak(int) override {}
  int copies = 0;
};

/// Registers it, once; null where the build has the real device.
inline FakeCuda* fake_cuda() {
  static FakeCuda* const fake = []() -> FakeCuda* {
    is_available(kCuda);  // registers what this build has
    if (!get_op("add").kernels(DeviceType::cuda).empty()) return nullptr;
    for (const Op* op : all_ops()) {
      for (const Kernel& kernel : op->kernels(DeviceType::cpu)) {
        register_kernel(op->name, DeviceType::cuda, kernel);
      }
    }
    auto made = std::make_unique<FakeCuda>();
    FakeCuda* const result = made.get();
    register_device_backend(DeviceType::cuda, std::move(made));
    return result;
  }();
  return fake;
}

}  // namespace tenon::test
