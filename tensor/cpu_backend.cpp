// The CPU as a device: aligned heap memory, large blocks of it reused, and kernels that have finished when their call returns.
#include <atomic>
#include <chrono>
#include <cstring>

#include "tensor/detail/block_cache.h"
#include "tensor/device_backend.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"
#include "tensor/support/launch_count.h"

namespace tenon {
namespace {

/// Memory kept for reuse: a training step of a small model needs less at a time.
constexpr std::size_t kCacheBytes = std::size_t{1} << 30;

class CpuBackend final : public DeviceBackend {
 public:
  int device_count() const override { return 1; }
  std::string device_name(int) const override {
    return fmt::format("CPU ({} thread{})", num_threads(), num_threads() == 1 ? "" : "s");
  }

  void* allocate(std::size_t bytes, int) override {
    void* data = cache_.allocate(bytes);
    if (data == nullptr) {
      throw OutOfMemory(fmt::format("out of memory on cpu: {} bytes requested, {} bytes live",
                                    bytes, live_.load()),
                        bytes, 0, live_.load());
    }
    const std::size_t live = live_ += bytes;
    std::size_t peak = peak_.load();
    while (peak < live && !peak_.compare_exchange_weak(peak, live)) {
    }
    return data;
  }

  void free(void* data, std::size_t bytes, int) noexcept override {
    cache_.free(data, bytes);
    live_ -= bytes;
  }

  void copy(void* target, Device, const void* source, Device, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(target, source, bytes);
  }

  void synchronize(int) override {}
  void* stream(int) override { return nullptr; }

  std::int64_t count_kernels(int, const std::function<void()>& work) override {
    const std::int64_t before = detail::kernel_launches;
    work();
    return detail::kernel_launches - before;
  }

  double time_ms(int, const std::function<void()>& work) override {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
        .count();
  }

  std::vector<WorkTime> time_each(int, std::span<const std::function<void()>> work) override {
    using Microseconds = std::chrono::duration<double, std::micro>;
    const auto begin = std::chrono::steady_clock::now();
    std::vector<WorkTime> times;
    for (const auto& piece : work) {
      const auto start = std::chrono::steady_clock::now();
      piece();
      const auto stop = std::chrono::steady_clock::now();
      times.push_back({Microseconds(start - begin).count(), Microseconds(stop - start).count()});
    }
    return times;
  }

  void reset_peak(int) override { peak_ = live_.load(); }

  MemoryStats memory_stats(int) const override {
    return {live_.load(), cache_.cached(), peak_.load()};
  }

 private:
  detail::BlockCache cache_{kCacheBytes};
  std::atomic<std::size_t> live_{0};
  std::atomic<std::size_t> peak_{0};
};

}  // namespace

std::unique_ptr<DeviceBackend> make_cpu_backend() { return std::make_unique<CpuBackend>(); }

}  // namespace tenon
