// The streams that threads work on. Each thread gets one of its own from the device's small pool,
// at its first call, and gives it back when it ends; threads beyond kMaxStreams share. So work of
// two threads overlaps, and what one thread queues runs in its order. Between threads the memory
// decides: work that uses what another stream wrote waits for that stream (WorkScope), on the GPU,
// not on the host.
//
// A stream counts its work: a use of memory is noted with the count, its ticket, after the work was
// queued. So an event that is recorded once the count is seen to be t covers every ticket up to t.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "cuda/handle.h"
#include "tensor/stream_uses.h"

namespace tenon::cuda {

class StreamPool;

/// The tickets of a block of memory at the time it was freed.
struct UsedUntil {
  std::array<std::uint64_t, kMaxStreams> tickets{};
  UsedUntil() = default;
  explicit UsedUntil(const StreamUses& uses);
};

class WorkStream {
 public:
  WorkStream(StreamPool& pool, int number);

  int number() const { return number_; }
  /// Where this thread's launches go: the stream, or what its capture records.
  cudaStream_t launches() const { return is_capturing() ? capture_.get() : stream_.get(); }
  cudaStream_t stream() const { return stream_.get(); }
  /// Held while work is queued, by one of the threads that share the stream.
  std::recursive_timed_mutex& mutex() { return mutex_; }
  /// Whether this thread is within capture().
  bool is_capturing() const;

  /// What is queued from here on runs after the work on memory of device `device` that `uses`
  /// conflicts with: after writes, and after reads where it will be written.
  void wait_for(std::span<const MemoryUse> uses, int device);
  /// Notes the uses of work that was queued.
  void mark(std::span<const MemoryUse> uses, int device);
  /// Everything that other streams did with a freed block is over, or comes before what is queued
  /// here from here on; asks the device, but does not wait.
  bool is_after(const UsedUntil& block);
  /// Makes it so.
  void wait_for(const UsedUntil& block);
  /// Work queued so far.
  std::uint64_t ticket() const { return queued_.load(std::memory_order_acquire); }

  /// What `work` launches on this thread's stream, recorded on another instead of run: launches of
  /// other threads stay outside, and calls that a strict capture forbids may be made.
  GraphHandle capture(const std::function<void()>& work);
  /// Waits, on the host, for what is queued.
  void synchronize();

  /// kWorkspaceBytes for kernels of this stream; made at the first call.
  void* workspace();
  /// Where captured work reads the forward number. Captured work stays on its stream, and each
  /// launch writes the cell first.
  std::uint32_t* forward_cell();

 private:
  friend class StreamPool;
  void wait_for(int other, std::uint64_t ticket);
  bool is_complete(std::uint64_t ticket);

  StreamPool& pool_;
  const int number_;
  StreamHandle stream_;
  StreamHandle capture_;  // made at the first capture
  EventHandle order_;     // recorded where another stream shall wait
  std::recursive_timed_mutex mutex_;
  std::atomic<std::uint64_t> queued_{1};                              // tickets start at 1
  std::array<std::atomic<std::uint64_t>, kMaxStreams> waited_for_{};  // tickets of the others
  std::mutex poll_mutex_;                                             // of what follows
  EventHandle poll_;
  std::uint64_t polled_ = 0;  // the ticket that the event covers; 0: not recorded
  std::atomic<std::uint64_t> complete_{0};
  void* workspace_ = nullptr;
  std::uint32_t* forward_cell_ = nullptr;
  int threads_ = 0;  // that it was given to; guarded by the pool
};

/// The streams of one device.
class StreamPool {
 public:
  explicit StreamPool(int device) : device_(device) {}
  StreamPool(const StreamPool&) = delete;
  StreamPool& operator=(const StreamPool&) = delete;

  int device() const { return device_; }
  WorkStream& of_this_thread();
  /// Stream `number`, or null where it was not made.
  WorkStream* find(int number) const {
    return streams_[static_cast<std::size_t>(number)].load(std::memory_order_acquire);
  }
  /// Waits, on the host, for all streams.
  void synchronize();
  /// A thread ended.
  void give_back(WorkStream& stream);

 private:
  WorkStream& assign();

  const int device_;
  std::mutex mutex_;
  // Never destroyed: the driver may be gone before the last thread is.
  std::array<std::atomic<WorkStream*>, kMaxStreams> streams_{};
};

}  // namespace tenon::cuda
