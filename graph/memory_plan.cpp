#include "graph/memory_plan.h"

#include <algorithm>
#include <numeric>

namespace tenon {
namespace {

std::size_t aligned(std::size_t bytes) {
  return (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
}

std::size_t live_bound(const std::vector<BufferLifetime>& buffers) {
  std::size_t bound = 0;
  for (const BufferLifetime& at : buffers) {
    std::size_t live = 0;
    for (const BufferLifetime& other : buffers) {
      if (other.first <= at.first && at.first <= other.last) live += aligned(other.bytes);
    }
    bound = std::max(bound, live);
  }
  return bound;
}

}  // namespace

MemoryPlan plan_memory(const std::vector<BufferLifetime>& buffers) {
  MemoryPlan plan;
  plan.offsets.assign(buffers.size(), 0);
  plan.live_bound_bytes = live_bound(buffers);
  std::vector<std::size_t> by_size(buffers.size());
  std::iota(by_size.begin(), by_size.end(), 0);
  std::stable_sort(by_size.begin(), by_size.end(), [&](std::size_t a, std::size_t b) {
    return buffers[a].bytes > buffers[b].bytes;
  });

  std::vector<std::size_t> placed;
  for (std::size_t buffer : by_size) {
    std::vector<std::pair<std::size_t, std::size_t>> taken;  // [begin, end) in conflict
    for (std::size_t other : placed) {
      if (buffers[other].first <= buffers[buffer].last &&
          buffers[buffer].first <= buffers[other].last) {
        taken.emplace_back(plan.offsets[other],
                           plan.offsets[other] + aligned(buffers[other].bytes));
      }
    }
    std::sort(taken.begin(), taken.end());
    std::size_t offset = 0;
    for (const auto& [begin, end] : taken) {
      if (begin >= offset + aligned(buffers[buffer].bytes)) break;
      offset = std::max(offset, end);
    }
    plan.offsets[buffer] = offset;
    plan.arena_bytes = std::max(plan.arena_bytes, offset + aligned(buffers[buffer].bytes));
    placed.push_back(buffer);
  }
  return plan;
}

}  // namespace tenon
