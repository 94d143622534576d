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
  /// An instruction at which that many are live.
  int peak = 0;
};

inline constexpr std::size_t kBufferAlignment = 256;

/// Each buffer, in some order, at the lowest offset that is free of every buffer placed before whose
/// lifetime overlaps its own; of a few orders (largest first, largest times longest-lived first, in
/// program order) the one that needs the least. That is first-fit packing of strips with fixed
/// positions in time, "dynamic storage allocation", which is NP-hard to do best.
MemoryPlan plan_memory(const std::vector<BufferLifetime>& buffers);

}  // namespace tenon
