// Where in one arena each buffer of a Program lives, so that buffers that are never needed at the
// same time share memory.
#pragma once

#include <cstddef>
#include <vector>

namespace tenon {

/// A buffer needed from instruction `first` to instruction `last`, both included.
struct BufferLifetime {
  std::size_t bytes = 0;
  int first = 0;
  int last = 0;
};

struct MemoryPlan {
  std::vector<std::size_t> offsets;  // bytes, multiples of kBufferAlignment, one a buffer
  std::size_t arena_bytes = 0;
  /// The most bytes that are live at any one instruction: no plan can need less.
  std::size_t live_bound_bytes = 0;
};

inline constexpr std::size_t kBufferAlignment = 256;

/// Greedy by size: the largest buffer first, each at the lowest offset that is free of every buffer
/// whose lifetime overlaps its own.
MemoryPlan plan_memory(const std::vector<BufferLifetime>& buffers);

}  // namespace tenon
