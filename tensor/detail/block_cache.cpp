#include "tensor/detail/block_cache.h"

#include <bit>
#include <cstdlib>

namespace tenon::detail {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kKeepsBlocks = false;
#else
constexpr bool kKeepsBlocks = true;
#endif

bool is_kept(std::size_t bytes) {
  return kKeepsBlocks && bytes >= BlockCache::kSmallest && bytes <= BlockCache::kLargest;
}

void* system_block(std::size_t bytes) {
  if (bytes > SIZE_MAX - BlockCache::kAlignment) return nullptr;
  const std::size_t rounded =
      (bytes + BlockCache::kAlignment - 1) / BlockCache::kAlignment * BlockCache::kAlignment;
  return std::aligned_alloc(BlockCache::kAlignment, rounded);
}

}  // namespace

std::size_t BlockCache::class_of(std::size_t bytes) {
  // Sizes are 4, 5, 6 and 7 quarters of a power of two; the smallest that holds `bytes`.
  const auto octave = static_cast<std::size_t>(std::bit_width(bytes - 1)) - 1;
  const std::size_t quarter = (std::size_t{1} << octave) / 4;
  const std::size_t quarters = (bytes + quarter - 1) / quarter;  // 5 … 8
  const auto first = static_cast<std::size_t>(std::bit_width(kSmallest)) - 1;
  return 4 * octave + quarters - 4 - 4 * first;
}

std::size_t BlockCache::size_of_class(std::size_t index) {
  return (kSmallest / 4 * (4 + index % 4)) << (index / 4);
}

void* BlockCache::allocate(std::size_t bytes) noexcept {
  if (!is_kept(bytes)) return system_block(bytes);
  const std::size_t index = class_of(bytes);
  {
    const std::lock_guard lock(mutex_);
    SizeClass& size_class = classes_[index];
    size_class.last_use = ++uses_;
    if (!size_class.blocks.empty()) {
      void* block = size_class.blocks.back();
      size_class.blocks.pop_back();
      cached_ -= size_of_class(index);
      return block;
    }
  }
  void* block = system_block(size_of_class(index));
  if (block != nullptr) return block;
  clear();
  return system_block(size_of_class(index));
}

void BlockCache::free(void* data, std::size_t bytes) noexcept {
  if (!is_kept(bytes)) return std::free(data);
  const std::size_t index = class_of(bytes);
  const std::size_t size = size_of_class(index);
  if (size > limit_) return std::free(data);
  const std::lock_guard lock(mutex_);
  classes_[index].last_use = ++uses_;
  make_room(size);
  try {
    classes_[index].blocks.push_back(data);
    cached_ += size;
  } catch (...) {  // no memory for the list itself
    std::free(data);
  }
}

void BlockCache::make_room(std::size_t bytes) noexcept {
  while (cached_ > 0 && cached_ + bytes > limit_) {
    SizeClass* oldest = nullptr;
    for (SizeClass& candidate : classes_) {
      if (candidate.blocks.empty()) continue;
      if (oldest == nullptr || candidate.last_use < oldest->last_use) oldest = &candidate;
    }
    std::free(oldest->blocks.back());
    oldest->blocks.pop_back();
    cached_ -= size_of_class(static_cast<std::size_t>(oldest - classes_.data()));
  }
}

void BlockCache::clear() noexcept {
  const std::lock_guard lock(mutex_);
  for (SizeClass& size_class : classes_) {
    for (void* block : size_class.blocks) std::free(block);
    size_class.blocks.clear();
  }
  cached_ = 0;
}

std::size_t BlockCache::cached() const noexcept {
  const std::lock_guard lock(mutex_);
  return cached_;
}

}  // namespace tenon::detail
