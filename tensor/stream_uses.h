// Which of a device's streams used a block of memory, and when. Threads queue work on streams of
// their own; what orders the work of two threads on one tensor is kept here, with the memory
// itself.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace tenon {

class Storage;

/// Streams of a device that threads work on; where there are more threads, some share one.
inline constexpr int kMaxStreams = 8;
/// Devices of a kind.
inline constexpr int kMaxDevices = 64;

/// A stream counts what is queued on it; such a count is a ticket. Kept by the device's backend; a
/// thread that uses memory after another has waited for that thread on the host, so relaxed
/// accesses do.
class StreamUses {
 public:
  struct Write {
    int stream = 0;
    std::uint64_t ticket = 0;
  };
  /// The last write, or the allocation.
  Write last_write() const {
    const std::uint64_t word = write_.load(std::memory_order_relaxed);
    return {static_cast<int>(word % kMaxStreams), word / kMaxStreams};
  }
  /// The last read or write on `stream`; 0: none.
  std::uint64_t last_use(int stream) const {
    return uses_[static_cast<std::size_t>(stream)].load(std::memory_order_relaxed);
  }
  /// Whether a stream other than this one used the memory.
  bool used_beside(int stream) const {
    return (streams_.load(std::memory_order_relaxed) & ~(1U << stream)) != 0;
  }
  void mark(int stream, std::uint64_t ticket, bool writes) {
    uses_[static_cast<std::size_t>(stream)].store(ticket, std::memory_order_relaxed);
    const std::uint32_t bit = 1U << stream;
    if ((streams_.load(std::memory_order_relaxed) & bit) == 0) streams_.fetch_or(bit);
    if (writes) {
      write_.store(ticket * kMaxStreams + static_cast<std::uint64_t>(stream),
                   std::memory_order_relaxed);
    }
  }

 private:
  std::atomic<std::uint32_t> streams_{0};  // bit s: stream s used it
  std::atomic<std::uint64_t> write_{0};
  std::array<std::atomic<std::uint64_t>, kMaxStreams> uses_{};
};

/// What a piece of work does with one block of memory.
struct MemoryUse {
  Storage* storage = nullptr;
  bool writes = false;
};

/// A stretch of work that this thread queues, in stream order after all earlier work, of any
/// thread, on the memory that it names. Memory of the CPU is passed over: its work is done when a
/// call returns.
///
///   WorkScope scope;
///   scope.reads(*a.storage());
///   scope.writes(*result.storage());
///   scope.begin();
///   run_kernel(…);
class WorkScope {
 public:
  WorkScope() = default;
  ~WorkScope();
  WorkScope(const WorkScope&) = delete;
  WorkScope& operator=(const WorkScope&) = delete;

  void reads(Storage& storage) { add(storage, false); }
  void writes(Storage& storage) { add(storage, true); }
  void add(std::span<const MemoryUse> uses);
  void begin();

 private:
  void add(Storage& storage, bool writes);

  std::vector<MemoryUse> uses_;
  std::uint64_t begun_ = 0;  // bit i: on the stream of device i
};

}  // namespace tenon
