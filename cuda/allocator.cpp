#include "cuda/allocator.h"

#include <bit>
#include <cstdlib>

#include "cuda/relaxed_capture.h"
#include "tensor/detail/check.h"

namespace tenon::cuda {
namespace {

constexpr std::size_t kSmallLimit = std::size_t{1} << 20;
constexpr std::size_t kLargeStep = std::size_t{2} << 20;
constexpr std::size_t kSmallestStep = 512;

bool caching_wanted() {
  const char* value = std::getenv("TENON_CUDA_NO_CACHE");
  return value == nullptr || *value != '1';
}

std::size_t round_up(std::size_t bytes, std::size_t step) {
  return (bytes + step - 1) / step * step;
}

}  // namespace

std::size_t block_bytes(std::size_t bytes) {
  if (bytes > kSmallLimit) return round_up(bytes, kLargeStep);
  return round_up(bytes, std::max(kSmallestStep, std::bit_floor(bytes) / 8));
}

CachingAllocator::CachingAllocator(int device, cudaStream_t stream)
    : device_(device), stream_(stream), caches_(caching_wanted()) {
  std::size_t free_now = 0;
  TENON_CUDA_CHECK(cudaMemGetInfo(&free_now, &total_bytes_));
}

void* CachingAllocator::allocate(std::size_t bytes) {
  require_alive();
  const std::lock_guard lock(mutex_);
  if (bytes > total_bytes_) throw_out_of_memory(bytes);
  const std::size_t wanted = caches_ ? block_bytes(bytes) : bytes;
  void* data = take_cached(wanted);
  if (data == nullptr) {
    data = malloc_or_throw(wanted);
    live_.emplace(data, wanted);
  }
  stats_.live += live_.at(data);
  stats_.peak = std::max(stats_.peak, stats_.live);
  return data;
}

/// The smallest cached block of at most an eighth more than `bytes`, entered into live_; or null.
void* CachingAllocator::take_cached(std::size_t bytes) {
  const auto found = cached_.lower_bound(bytes);
  if (found == cached_.end() || found->first > bytes + bytes / 8) return nullptr;
  void* data = found->second.back();
  live_.emplace(data, found->first);
  stats_.cached -= found->first;
  found->second.pop_back();
  if (found->second.empty()) cached_.erase(found);
  return data;
}

void CachingAllocator::free(void* data) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(data);
    if (found == live_.end()) return;
    const std::size_t bytes = found->second;
    live_.erase(found);
    stats_.live -= bytes;
    if (is_lost()) return;
    if (caches_) {
      cached_[bytes].push_back(data);
      stats_.cached += bytes;
    } else {
      const RelaxedCapture relaxed;
      note_quietly(cudaFree(data));
    }
  } catch (...) {  // no host memory for the entry: the block is lost, the process goes on
  }
}

void* CachingAllocator::allocate_permanent(std::size_t bytes) {
  require_alive();
  const std::lock_guard lock(mutex_);
  return malloc_or_throw(bytes);
}

void* CachingAllocator::malloc_or_throw(std::size_t bytes) {
  use_device(device_);
  void* data = malloc_or_null(bytes);
  if (data == nullptr && !cached_.empty() && !is_capturing()) {
    release_cached_locked();
    data = malloc_or_null(bytes);
  }
  if (data == nullptr) throw_out_of_memory(bytes);
  return data;
}

void* CachingAllocator::malloc_or_null(std::size_t bytes) {
  const RelaxedCapture relaxed;
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  check(status, "cudaMalloc");
  return data;
}

bool CachingAllocator::is_capturing() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TENON_CUDA_CHECK(cudaStreamIsCapturing(stream_, &status));
  return status != cudaStreamCaptureStatusNone;
}

void CachingAllocator::release_cached() {
  require_alive();
  const std::lock_guard lock(mutex_);
  use_device(device_);
  release_cached_locked();
}

void CachingAllocator::release_cached_locked() {
  // cudaFree waits for the device, so no queued kernel still uses a block.
  while (!cached_.empty()) {
    const auto last = std::prev(cached_.end());
    while (!last->second.empty()) {
      void* data = last->second.back();
      last->second.pop_back();
      stats_.cached -= last->first;
      TENON_CUDA_CHECK(cudaFree(data));
    }
    cached_.erase(last);
  }
}

void CachingAllocator::throw_out_of_memory(std::size_t bytes) {
  std::size_t free_now = 0;
  std::size_t total = total_bytes_;
  if (cudaMemGetInfo(&free_now, &total) != cudaSuccess) static_cast<void>(cudaGetLastError());
  throw OutOfMemory(
      fmt::format("out of memory on cuda:{}: {} bytes requested; {} of {} bytes free, {} live and "
                  "{} cached in this process",
                  device_, bytes, free_now, total, stats_.live, stats_.cached),
      bytes, free_now, stats_.live);
}

void CachingAllocator::reset_peak() {
  const std::lock_guard lock(mutex_);
  stats_.peak = stats_.live;
}

MemoryStats CachingAllocator::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace tenon::cuda
