#include "cuda/allocator.h"

#include <bit>
#include <cstdlib>

#include "cuda/check.h"
#include "tensor/support/check.h"

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

CachingAllocator::CachingAllocator(StreamPool& streams)
    : streams_(streams), caches_(caching_wanted()) {
  use_device(streams_.device());
  std::size_t free_now = 0;
  TENON_CUDA_CHECK(cudaMemGetInfo(&free_now, &total_bytes_));
}

void* CachingAllocator::allocate(std::size_t bytes) {
  require_alive();
  const std::lock_guard lock(mutex_);
  if (bytes > total_bytes_) throw_out_of_memory(bytes);
  const std::size_t wanted = caches_ ? block_bytes(bytes) : bytes;
  void* data = take_cached(wanted, Wait::never);
  if (data == nullptr) {
    data = malloc_or_throw(wanted);
    live_.try_emplace(data, wanted);
  }
  stats_.live += live_.at(data);
  stats_.peak = std::max(stats_.peak, stats_.live);
  return data;
}

/// The smallest cached block of at most an eighth more than `bytes` that this thread's stream may
/// use, entered into live_; or null.
void* CachingAllocator::take_cached(std::size_t bytes, Wait wait) {
  constexpr std::size_t kLooks = 16;  // at blocks that other streams used
  std::size_t looks = 0;
  WorkStream& stream = streams_.of_this_thread();
  for (auto size = cached_.lower_bound(bytes);
       size != cached_.end() && size->first <= bytes + bytes / 8; ++size) {
    std::vector<Block>& blocks = size->second;
    for (std::size_t i = blocks.size(); i-- > 0 && looks < kLooks;) {
      if (!stream.is_after(blocks[i].uses)) {
        ++looks;
        if (wait == Wait::never) continue;
        stream.wait_for(blocks[i].uses);
      }
      void* data = blocks[i].data;
      live_.emplace(data, size->first);
      stats_.cached -= size->first;
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
      if (blocks.empty()) cached_.erase(size);
      return data;
    }
  }
  return nullptr;
}

void CachingAllocator::free(void* data, const UsedUntil& uses) noexcept {
  if (is_lost()) return;  // in a forked child the lock may be held by a thread that is not there
  try {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(data);
    if (found == live_.end()) return;
    const std::size_t bytes = found->second;
    live_.erase(found);
    stats_.live -= bytes;
    if (caches_) {
      cached_[bytes].push_back({data, uses});
      stats_.cached += bytes;
    } else {
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
  use_device(streams_.device());
  void* data = malloc_or_null(bytes);
  if (data == nullptr) data = take_cached(bytes, Wait::if_needed);
  if (data == nullptr && !cached_.empty()) {
    release_cached_locked();
    data = malloc_or_null(bytes);
  }
  if (data == nullptr) throw_out_of_memory(bytes);
  return data;
}

void* CachingAllocator::malloc_or_null(std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  check(status, "cudaMalloc");
  return data;
}

void CachingAllocator::release_cached() {
  require_alive();
  const std::lock_guard lock(mutex_);
  use_device(streams_.device());
  release_cached_locked();
}

void CachingAllocator::release_cached_locked() {
  streams_.synchronize();  // so no queued kernel still uses a block
  while (!cached_.empty()) {
    const auto last = std::prev(cached_.end());
    while (!last->second.empty()) {
      void* data = last->second.back().data;
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
                  streams_.device(), bytes, free_now, total, stats_.live, stats_.cached),
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
