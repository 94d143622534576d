#include "cuda/work_stream.h"

#include "cuda/context.h"
#include "tensor/storage.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

/// What this thread was given, by device.
struct Assigned {
  std::array<WorkStream*, kMaxDevices> streams{};
  ~Assigned() {
    for (std::size_t device = 0; device < streams.size(); ++device) {
      if (streams[device] == nullptr) continue;
      existing_context(static_cast<int>(device))->streams().give_back(*streams[device]);
    }
  }
};
thread_local Assigned assigned;
thread_local const WorkStream* captures = nullptr;  // what this thread captures on

void raise(std::atomic<std::uint64_t>& value, std::uint64_t to) {
  std::uint64_t now = value.load(std::memory_order_relaxed);
  while (now < to && !value.compare_exchange_weak(now, to)) {
  }
}

}  // namespace

UsedUntil::UsedUntil(const StreamUses& uses) {
  for (int stream = 0; stream < kMaxStreams; ++stream) {
    tickets[static_cast<std::size_t>(stream)] = uses.last_use(stream);
  }
}

WorkStream::WorkStream(StreamPool& pool, int number)
    : pool_(pool),
      number_(number),
      stream_(make_stream()),
      order_(make_event(/*timing=*/false)),
      poll_(make_event(/*timing=*/false)) {}

/// Everything queued on the other stream up to `ticket` comes before what is queued here from here
/// on.
void WorkStream::wait_for(int other, std::uint64_t ticket) {
  if (other == number_ || waited_for_[static_cast<std::size_t>(other)].load() >= ticket) return;
  WorkStream& source = *pool_.find(other);
  if (source.complete_.load() >= ticket) return;
  const std::uint64_t covered = source.ticket();
  // Another thread may record the event anew before the wait: then it covers more.
  TENON_CUDA_CHECK(cudaEventRecord(source.order_.get(), source.stream_.get()));
  TENON_CUDA_CHECK(cudaStreamWaitEvent(stream_.get(), source.order_.get(), 0));
  raise(waited_for_[static_cast<std::size_t>(other)], covered);
  ++queued_;  // who has waited for this stream up to now has not waited for the other one
}

void WorkStream::wait_for(std::span<const MemoryUse> uses, int device) {
  for (const MemoryUse& use : uses) {
    if (use.storage->device().index != device) continue;
    const StreamUses& of_memory = use.storage->uses();
    if (!of_memory.used_beside(number_)) continue;
    const StreamUses::Write write = of_memory.last_write();
    wait_for(write.stream, write.ticket);
    if (!use.writes) continue;
    for (int other = 0; other < kMaxStreams; ++other) wait_for(other, of_memory.last_use(other));
  }
}

void WorkStream::mark(std::span<const MemoryUse> uses, int device) {
  const std::uint64_t ticket = ++queued_;
  for (const MemoryUse& use : uses) {
    if (use.storage->device().index == device) {
      use.storage->uses().mark(number_, ticket, use.writes);
    }
  }
}

/// Whether the device has finished everything up to `ticket`.
bool WorkStream::is_complete(std::uint64_t ticket) {
  if (complete_.load() >= ticket) return true;
  const std::lock_guard lock(poll_mutex_);
  if (polled_ != 0 && cudaEventQuery(poll_.get()) == cudaSuccess) {
    raise(complete_, polled_);
    polled_ = 0;
  }
  if (polled_ == 0 && complete_.load() < ticket) {
    const std::uint64_t covered = this->ticket();
    TENON_CUDA_CHECK(cudaEventRecord(poll_.get(), stream_.get()));
    polled_ = covered;
  }
  static_cast<void>(cudaGetLastError());  // "not ready" is no error
  return complete_.load() >= ticket;
}

bool WorkStream::is_after(const UsedUntil& block) {
  for (int other = 0; other < kMaxStreams; ++other) {
    const std::uint64_t ticket = block.tickets[static_cast<std::size_t>(other)];
    if (ticket == 0 || other == number_) continue;
    if (waited_for_[static_cast<std::size_t>(other)].load() >= ticket) continue;
    if (!pool_.find(other)->is_complete(ticket)) return false;
  }
  return true;
}

void WorkStream::wait_for(const UsedUntil& block) {
  for (int other = 0; other < kMaxStreams; ++other) {
    wait_for(other, block.tickets[static_cast<std::size_t>(other)]);
  }
}

bool WorkStream::is_capturing() const { return captures == this; }

GraphHandle WorkStream::capture(const std::function<void()>& work) {
  const std::lock_guard lock(mutex_);
  TENON_INTERNAL(captures == nullptr, "a capture within a capture");
  if (!capture_) capture_ = make_stream();
  TENON_CUDA_CHECK(cudaStreamBeginCapture(capture_.get(), cudaStreamCaptureModeRelaxed));
  cudaGraph_t captured = nullptr;
  captures = this;
  try {
    work();
  } catch (...) {
    captures = nullptr;
    note_quietly(cudaStreamEndCapture(capture_.get(), &captured));
    const GraphHandle discarded(captured);
    throw;
  }
  captures = nullptr;
  TENON_CUDA_CHECK(cudaStreamEndCapture(capture_.get(), &captured));
  return GraphHandle(captured);
}

void WorkStream::synchronize() {
  const std::uint64_t covered = ticket();
  TENON_CUDA_CHECK(cudaStreamSynchronize(stream_.get()));
  raise(complete_, covered);
}

void* WorkStream::workspace() {
  const std::lock_guard lock(mutex_);
  if (workspace_ == nullptr) {
    workspace_ = device_context(pool_.device()).allocator().allocate_permanent(kWorkspaceBytes);
  }
  return workspace_;
}

std::uint32_t* WorkStream::forward_cell() {
  const std::lock_guard lock(mutex_);
  if (forward_cell_ == nullptr) {
    forward_cell_ = static_cast<std::uint32_t*>(
        device_context(pool_.device()).allocator().allocate_permanent(sizeof(*forward_cell_)));
  }
  return forward_cell_;
}

WorkStream& StreamPool::of_this_thread() {
  WorkStream*& mine = assigned.streams[static_cast<std::size_t>(device_)];
  if (mine == nullptr) [[unlikely]]
    mine = &assign();
  return *mine;
}

/// The first stream that no thread has, else the one that the fewest have.
WorkStream& StreamPool::assign() {
  const std::lock_guard lock(mutex_);
  std::size_t best = 0;
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    const WorkStream* stream = streams_[i].load();
    if (stream == nullptr) {
      use_device(device_);
      streams_[i].store(new WorkStream(*this, static_cast<int>(i)), std::memory_order_release);
      best = i;
      break;
    }
    if (stream->threads_ < streams_[best].load()->threads_) best = i;
    if (stream->threads_ == 0) break;
  }
  WorkStream& stream = *streams_[best].load();
  ++stream.threads_;
  stop_other_threads_at_exit();
  return stream;
}

void StreamPool::give_back(WorkStream& stream) {
  const std::lock_guard lock(mutex_);
  --stream.threads_;
}

void StreamPool::synchronize() {
  for (const auto& slot : streams_) {
    if (WorkStream* stream = slot.load(std::memory_order_acquire)) stream->synchronize();
  }
}

}  // namespace tenon::cuda
