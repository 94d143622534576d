// A caching allocator in stream order. A block that was freed on the host may be handed out again
// at once to the stream that used it: its next user's kernels are queued behind the last one's.
// Another stream gets it when that work is over, or known to come first; only where memory is short
// the stream is made to wait. Blocks come from cudaMalloc and are never split; what is cached is
// given back when an allocation fails. TENON_CUDA_NO_CACHE=1 makes every allocation a plain
// cudaMalloc of exactly the size asked for, so that compute-sanitizer sees each access beyond it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cuda/work_stream.h"
#include "tensor/device_backend.h"

namespace tenon::cuda {

/// The block size that serves a request: multiples of 512 bytes in eight steps an octave up to
/// 1 MiB, multiples of 2 MiB above.
std::size_t block_bytes(std::size_t bytes);

class CachingAllocator {
 public:
  explicit CachingAllocator(StreamPool& streams);
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  /// At least `bytes` > 0 bytes for this thread's stream, aligned to 256; OutOfMemory when they do
  /// not fit even after all cached blocks were given back.
  void* allocate(std::size_t bytes);
  /// Gives a block back, to be handed out again after `uses`; never throws, nor complains about a
  /// lost device.
  void free(void* data, const UsedUntil& uses) noexcept;
  /// Memory for the whole process that the statistics do not count: workspaces.
  void* allocate_permanent(std::size_t bytes);
  /// Gives all cached blocks back to the driver.
  void release_cached();
  MemoryStats stats() const;
  void reset_peak();

 private:
  struct Block {
    void* data = nullptr;
    UsedUntil uses;
  };
  enum class Wait : std::uint8_t { never, if_needed };

  void* take_cached(std::size_t bytes, Wait wait);
  void* malloc_or_null(std::size_t bytes);
  void* malloc_or_throw(std::size_t bytes);
  void release_cached_locked();
  [[noreturn]] void throw_out_of_memory(std::size_t bytes);

  StreamPool& streams_;
  const bool caches_;
  std::size_t total_bytes_ = 0;
  mutable std::mutex mutex_;
  std::unordered_map<void*, std::size_t> live_;
  std::map<std::size_t, std::vector<Block>> cached_;  // by block size
  MemoryStats stats_;
};

}  // namespace tenon::cuda
