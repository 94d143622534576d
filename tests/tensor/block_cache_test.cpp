// The cache of host memory: alignment, reuse, its bound, and many threads at once.
#include "tensor/detail/block_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

namespace tenon::detail {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kKeepsBlocks = false;
#else
constexpr bool kKeepsBlocks = true;
#endif

constexpr std::size_t kMega = std::size_t{1} << 20;

TEST(BlockCache, BlocksHoldTheirBytesAndAreAligned) {
  BlockCache cache(64 * kMega);
  for (const std::size_t base : {std::size_t{1}, BlockCache::kSmallest, 5 * kMega, 8 * kMega}) {
    for (const std::size_t bytes : {base, base + 1, base + base / 4, base + base / 3}) {
      for (int round = 0; round < 2; ++round) {  // the second one reuses
        void* data = cache.allocate(bytes);
        ASSERT_NE(data, nullptr);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % BlockCache::kAlignment, 0U);
        std::memset(data, round, bytes);
        cache.free(data, bytes);
      }
    }
  }
  EXPECT_EQ(cache.allocate(SIZE_MAX - 3), nullptr);
}

TEST(BlockCache, ReusesWhatFits) {
  if (!kKeepsBlocks) GTEST_SKIP() << "nothing is kept under a sanitizer";
  BlockCache cache(64 * kMega);
  void* data = cache.allocate(4 * kMega);
  cache.free(data, 4 * kMega);
  EXPECT_EQ(cache.cached(), 4 * kMega);
  void* larger = cache.allocate(4 * kMega + 1);
  EXPECT_NE(larger, data);
  void* similar = cache.allocate(4 * kMega - 1000);
  EXPECT_EQ(similar, data);
  EXPECT_EQ(cache.cached(), 0U);
  cache.free(larger, 4 * kMega + 1);
  cache.free(similar, 4 * kMega - 1000);
  EXPECT_EQ(cache.cached(), 9 * kMega);
  cache.clear();
  EXPECT_EQ(cache.cached(), 0U);
}

TEST(BlockCache, StaysWithinItsLimit) {
  if (!kKeepsBlocks) GTEST_SKIP() << "nothing is kept under a sanitizer";
  BlockCache cache(10 * kMega);
  void* old = cache.allocate(2 * kMega);
  void* recent[3];
  for (void*& block : recent) block = cache.allocate(4 * kMega);
  cache.free(old, 2 * kMega);
  cache.free(recent[0], 4 * kMega);
  cache.free(recent[1], 4 * kMega);
  EXPECT_EQ(cache.cached(), 10 * kMega);
  cache.free(recent[2], 4 * kMega);  // the old block and one more go
  EXPECT_EQ(cache.cached(), 8 * kMega);
  void* huge = cache.allocate(16 * kMega);
  cache.free(huge, 16 * kMega);
  EXPECT_EQ(cache.cached(), 8 * kMega);
}

TEST(BlockCache, ThreadsDoNotShareABlock) {
  BlockCache cache(16 * kMega);
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&cache, seed] {
      std::mt19937 engine(seed);
      for (int i = 0; i < 300; ++i) {
        const std::size_t bytes = BlockCache::kSmallest + engine() % (kMega / 2);
        auto* data = static_cast<unsigned char*>(cache.allocate(bytes));
        data[0] = data[bytes - 1] = static_cast<unsigned char>(seed);
        std::this_thread::yield();
        EXPECT_EQ(data[0], seed);
        EXPECT_EQ(data[bytes - 1], seed);
        cache.free(data, bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache.cached(), 16 * kMega);
}

}  // namespace
}  // namespace tenon::detail
