#include "graph/memory_plan.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace tenon {
namespace {

using Order = std::vector<std::size_t>;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
}

/// The live bytes change where a buffer begins and after one ends.
void find_peak(const std::vector<BufferLifetime>& buffers, MemoryPlan& plan) {
  int end = 0;
  for (const BufferLifetime& buffer : buffers) end = std::max(end, buffer.last + 1);
  std::vector<std::ptrdiff_t> change(static_cast<std::size_t>(end) + 1, 0);
  for (const BufferLifetime& buffer : buffers) {
    change[static_cast<std::size_t>(buffer.first)] +=
        static_cast<std::ptrdiff_t>(aligned(buffer.bytes));
    change[static_cast<std::size_t>(buffer.last) + 1] -=
        static_cast<std::ptrdiff_t>(aligned(buffer.bytes));
  }
  std::ptrdiff_t live = 0;
  for (int at = 0; at < end; ++at) {
    live += change[static_cast<std::size_t>(at)];
    if (static_cast<std::size_t>(live) <= plan.live_bound_bytes) continue;
    plan.live_bound_bytes = static_cast<std::size_t>(live);
    plan.peak = at;
  }
}

/// The lowest offset that is free of `taken`, which are [begin, end), for that many bytes.
std::size_t lowest_gap(std::vector<std::pair<std::size_t, std::size_t>>& taken, std::size_t bytes) {
  std::sort(taken.begin(), taken.end());
  std::size_t offset = 0;
  for (const auto& [begin, end] : taken) {
    if (begin >= offset + bytes) break;
    offset = std::max(offset, end);
  }
  return offset;
}

void place(const std::vector<BufferLifetime>& buffers, const Order& order, MemoryPlan& plan) {
  plan.offsets.assign(buffers.size(), 0);
  plan.arena_bytes = 0;
  std::vector<std::size_t> placed;
  std::vector<std::pair<std::size_t, std::size_t>> taken;
  for (std::size_t buffer : order) {
    taken.clear();
    for (std::size_t other : placed) {
      if (buffers[other].first <= buffers[buffer].last &&
          buffers[buffer].first <= buffers[other].last) {
        taken.emplace_back(plan.offsets[other],
                           plan.offsets[other] + aligned(buffers[other].bytes));
      }
    }
    const std::size_t bytes = aligned(buffers[buffer].bytes);
    plan.offsets[buffer] = lowest_gap(taken, bytes);
    plan.arena_bytes = std::max(plan.arena_bytes, plan.offsets[buffer] + bytes);
    placed.push_back(buffer);
  }
}

}  // namespace

MemoryPlan plan_memory(const std::vector<BufferLifetime>& buffers) {
  MemoryPlan best;
  find_peak(buffers, best);
  const std::function<double(const BufferLifetime&)> weights[] = {
      [](const BufferLifetime& b) { return static_cast<double>(b.bytes); },
      [](const BufferLifetime& b) {
        return static_cast<double>(b.bytes) * static_cast<double>(b.last - b.first + 1);
      },
      [](const BufferLifetime& b) { return -static_cast<double>(b.first); },
  };
  for (const auto& weight : weights) {
    Order order(buffers.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return weight(buffers[a]) > weight(buffers[b]);
    });
    MemoryPlan plan = best;
    place(buffers, order, plan);
    if (best.offsets.empty() || plan.arena_bytes < best.arena_bytes) best = std::move(plan);
    if (best.arena_bytes == best.live_bound_bytes) break;
  }
  return best;
}

}  // namespace tenon
