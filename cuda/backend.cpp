#include "cuda/backend.h"

#include <nvtx3/nvToolsExt.h>

#include <chrono>
#include <vector>

#include "cuda/check.h"
#include "cuda/context.h"
#include "cuda/handle.h"
#include "cuda/kernels/hold_back.h"
#include "cuda/kernels/register.h"
#include "tensor/device_backend.h"
#include "tensor/support/check.h"
#include "tensor/support/seams.h"

namespace tenon::cuda {
namespace {

std::int64_t count_kernel_nodes(cudaGraph_t graph) {
  std::size_t count = 0;
  TENON_CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  if (count > 0) TENON_CUDA_CHECK(cudaGraphGetNodes(graph, nodes.data(), &count));
  std::int64_t kernels = 0;
  for (cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type{};
    TENON_CUDA_CHECK(cudaGraphNodeGetType(node, &type));
    if (type == cudaGraphNodeTypeKernel) ++kernels;
    if (type == cudaGraphNodeTypeGraph) {
      cudaGraph_t child = nullptr;
      TENON_CUDA_CHECK(cudaGraphChildGraphNodeGetGraph(node, &child));
      kernels += count_kernel_nodes(child);
    }
  }
  return kernels;
}

/// A CUDA graph that starts by writing the forward number to its stream's cell, where its kernels
/// read it.
class CudaGraph final : public CapturedWork {
 public:
  CudaGraph(WorkStream& stream, const std::function<void(const std::uint32_t*)>& work)
      : stream_(stream) {
    write_.dst = stream.forward_cell();
    write_.elementSize = sizeof(std::uint32_t);
    write_.width = 1;
    write_.height = 1;
    graph_ = stream.capture([&] { work(stream.forward_cell()); });
    add_write();
    cudaGraphExec_t exec = nullptr;
    TENON_CUDA_CHECK(cudaGraphInstantiate(&exec, graph_.get(), 0));
    exec_ = GraphExecHandle(exec);
  }

  void launch(std::uint32_t forward) override {
    require_alive();
    if (write_.value != forward) {
      write_.value = forward;
      TENON_CUDA_CHECK(cudaGraphExecMemsetNodeSetParams(exec_.get(), write_node_, &write_));
    }
    TENON_CUDA_CHECK(cudaGraphLaunch(exec_.get(), stream_.stream()));
  }

 private:
  /// Puts the write before everything that waits for nothing yet.
  void add_write() {
    std::size_t count = 0;
    TENON_CUDA_CHECK(cudaGraphGetRootNodes(graph_.get(), nullptr, &count));
    std::vector<cudaGraphNode_t> roots(count);
    if (count > 0) TENON_CUDA_CHECK(cudaGraphGetRootNodes(graph_.get(), roots.data(), &count));
    TENON_CUDA_CHECK(cudaGraphAddMemsetNode(&write_node_, graph_.get(), nullptr, 0, &write_));
    const std::vector<cudaGraphNode_t> from(count, write_node_);
    if (count > 0) {
      TENON_CUDA_CHECK(
          cudaGraphAddDependencies(graph_.get(), from.data(), roots.data(), nullptr, count));
    }
  }

  WorkStream& stream_;
  GraphHandle graph_;
  GraphExecHandle exec_;
  cudaMemsetParams write_{};
  cudaGraphNode_t write_node_ = nullptr;
};

/// Pinned memory is read by the device itself, after the call; pageable memory is staged within it.
bool is_pinned(const void* data) {
  cudaPointerAttributes attributes{};
  TENON_CUDA_CHECK(cudaPointerGetAttributes(&attributes, data));
  return attributes.type == cudaMemoryTypeHost;
}

class CudaBackend final : public DeviceBackend {
 public:
  int device_count() const override { return probe_devices().count; }

  std::string unavailable_reason() const override { return probe_devices().reason; }

  std::string device_name(int index) const override {
    static_cast<void>(device_context(index));
    cudaDeviceProp properties{};
    TENON_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    return properties.name;
  }

  void* allocate(std::size_t bytes, int index) override {
    return device_context(index).allocator().allocate(bytes);
  }

  void free(void* data, std::size_t bytes, int index) noexcept override {
    StreamUses uses;
    if (existing_context(index) != nullptr) mark_allocated(index, uses);
    free(data, bytes, index, uses);
  }

  void free(void* data, std::size_t, int index, const StreamUses& uses) noexcept override {
    if (DeviceContext* context = existing_context(index)) {
      context->allocator().free(data, UsedUntil(uses));
    }
  }

  void mark_allocated(int index, StreamUses& uses) override {
    const WorkStream& stream = existing_context(index)->work_stream();
    uses.mark(stream.number(), stream.ticket(), /*writes=*/true);
  }

  void begin_work(int index, std::span<const MemoryUse> uses) override {
    WorkStream& stream = device_context(index).work_stream();
    std::unique_lock lock(stream.mutex());
    stream.wait_for(uses, index);
    lock.release();  // by end_work
  }

  void end_work(int index, std::span<const MemoryUse> uses) noexcept override {
    WorkStream& stream = existing_context(index)->work_stream();
    stream.mark(uses, index);
    stream.mutex().unlock();
  }

  void copy(void* target, Device target_device, const void* source, Device source_device,
            std::size_t bytes) override {
    if (bytes == 0) return;
    if (target_device.is_cuda() && source_device.is_cuda() &&
        target_device.index != source_device.index) {
      copy_between_devices(target, target_device.index, source, source_device.index, bytes);
      return;
    }
    const int index = target_device.is_cuda() ? target_device.index : source_device.index;
    WorkStream& work_stream = device_context(index).work_stream();
    cudaStream_t stream = work_stream.launches();
    if (target_device.is_cpu() || source_device.is_cpu()) {
      TENON_CHECK(!work_stream.is_capturing(), DeviceError,
                  "a copy between host and device while kernels are being counted or captured; "
                  "needed work that stays on the device");
    }
    TENON_CUDA_CHECK(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDefault, stream));
    if (target_device.is_cpu() || (source_device.is_cpu() && is_pinned(source))) {
      TENON_CUDA_CHECK(cudaStreamSynchronize(stream));
    }
  }

  void synchronize(int index) override { device_context(index).streams().synchronize(); }

  void* stream(int index) override { return device_context(index).stream().handle; }

  std::int64_t count_kernels(int index, const std::function<void()>& work) override {
    return count_kernel_nodes(device_context(index).work_stream().capture(work).get());
  }

  std::unique_ptr<CapturedWork> capture(
      int index, const std::function<void(const std::uint32_t*)>& work) override {
    WorkStream& stream = device_context(index).work_stream();
    if (stream.is_capturing()) return nullptr;
    return std::make_unique<CudaGraph>(stream, work);
  }

  std::vector<WorkTime> time_each(int index, std::span<const std::function<void()>> work) override {
    cudaStream_t stream = device_context(index).stream().handle;
    std::vector<EventHandle> events;
    for (std::size_t i = 0; i <= work.size(); ++i) events.push_back(make_event(true));
    synchronize(index);
    hold_back({stream, index}, std::chrono::microseconds(20 * work.size()));
    TENON_CUDA_CHECK(cudaEventRecord(events[0].get(), stream));
    for (std::size_t i = 0; i < work.size(); ++i) {
      work[i]();
      TENON_CUDA_CHECK(cudaEventRecord(events[i + 1].get(), stream));
    }
    synchronize(index);
    std::vector<WorkTime> times;
    double start = 0;
    for (std::size_t i = 0; i < work.size(); ++i) {
      float milliseconds = 0;
      TENON_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, events[i].get(), events[i + 1].get()));
      times.push_back({start, milliseconds * 1e3});
      start += times.back().duration;
    }
    return times;
  }

  // Without a profiler these are a look at a function pointer.
  void push_range(const char* name) noexcept override { nvtxRangePushA(name); }
  void pop_range() noexcept override { nvtxRangePop(); }

  void reset_peak(int index) override {
    if (DeviceContext* context = existing_context(index)) context->allocator().reset_peak();
  }

  double time_ms(int index, const std::function<void()>& work) override {
    cudaStream_t stream = device_context(index).stream().handle;
    const EventHandle start = make_event(true);
    const EventHandle stop = make_event(true);
    TENON_CUDA_CHECK(cudaEventRecord(start.get(), stream));
    work();
    TENON_CUDA_CHECK(cudaEventRecord(stop.get(), stream));
    TENON_CUDA_CHECK(cudaEventSynchronize(stop.get()));
    float milliseconds = 0;
    TENON_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.get(), stop.get()));
    return milliseconds;
  }

  MemoryStats memory_stats(int index) const override {
    DeviceContext* context = existing_context(index);
    return context != nullptr ? context->allocator().stats() : MemoryStats{};
  }

 private:
  /// This thread's streams of both devices are waited for: nothing orders these on the GPUs.
  void copy_between_devices(void* target, int target_index, const void* source, int source_index,
                            std::size_t bytes) {
    device_context(source_index).work_stream().synchronize();
    cudaStream_t stream = device_context(target_index).stream().handle;
    TENON_CUDA_CHECK(
        cudaMemcpyPeerAsync(target, target_index, source, source_index, bytes, stream));
    TENON_CUDA_CHECK(cudaStreamSynchronize(stream));
  }
};

}  // namespace

void register_backend() {
  register_device_backend(DeviceType::cuda, std::make_unique<CudaBackend>());
  register_all_kernels();
}

}  // namespace tenon::cuda
