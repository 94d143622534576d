// Free blocks of host memory, kept for reuse: the pages of a fresh large block cost a fault each, which
// takes longer than many kernels. Blocks come in four sizes an octave; small ones are left to malloc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace tenon::detail {

/// Thread-safe. Under a sanitizer nothing is kept, so that it sees every use after free.
class BlockCache {
 public:
  /// Keeps up to `limit` bytes; beyond that the sizes that were not used for longest go first.
  explicit BlockCache(std::size_t limit) : limit_(limit) {}
  ~BlockCache() { clear(); }
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  /// At least `bytes` > 0, aligned to kAlignment; null when there is no memory.
  void* allocate(std::size_t bytes) noexcept;
  /// Takes back a block that was allocated with this size.
  void free(void* data, std::size_t bytes) noexcept;
  /// Gives all that is kept back to the system.
  void clear() noexcept;
  /// Bytes kept now.
  std::size_t cached() const noexcept;

  static constexpr std::size_t kAlignment = 256;
  /// Smaller blocks are malloc's: it reuses them itself.
  static constexpr std::size_t kSmallest = std::size_t{1} << 16;
  /// Larger ones go back at once.
  static constexpr std::size_t kLargest = std::size_t{1} << 34;

 private:
  static constexpr std::size_t kClasses = 4 * 18 + 1;  // kSmallest … kLargest
  struct SizeClass {
    std::vector<void*> blocks;
    std::uint64_t last_use = 0;
  };
  static std::size_t class_of(std::size_t bytes);
  static std::size_t size_of_class(std::size_t index);
  void make_room(std::size_t bytes) noexcept;

  const std::size_t limit_;
  mutable std::mutex mutex_;
  std::array<SizeClass, kClasses> classes_;
  std::size_t cached_ = 0;
  std::uint64_t uses_ = 0;
};

}  // namespace tenon::detail
