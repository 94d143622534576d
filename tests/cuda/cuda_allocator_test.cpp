// The CUDA backend itself: allocation, statistics and out-of-memory errors, copies, kernel counts.
#include "cuda/allocator.h"
#include "cuda/context.h"
#include "cuda/launch.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

TEST(CudaAllocator, BlockSizes) {
  for (std::size_t bytes :
       {std::size_t{1}, std::size_t{511}, std::size_t{512}, std::size_t{513}, std::size_t{100000},
        std::size_t{1} << 20, (std::size_t{1} << 20) + 1, std::size_t{3} << 30}) {
    const std::size_t block = cuda::block_bytes(bytes);
    EXPECT_GE(block, bytes);
    EXPECT_EQ(block % 512, 0U);
    EXPECT_LE(block,
              bytes + std::max<std::size_t>({512, bytes / 8, bytes > (1 << 20) ? 2 << 20 : 0}));
    EXPECT_EQ(cuda::block_bytes(block), block) << "a block of its own size is used as it is";
  }
}

TEST(CudaAllocator, GridsAreFolded) {
  for (const std::int64_t blocks : {std::int64_t{1}, cuda::kMaxGridX, cuda::kMaxGridX + 1,
                                    std::int64_t{1} << 40, (std::int64_t{1} << 30) * 65535}) {
    const cuda::GridShape grid = cuda::fold_blocks(blocks);
    EXPECT_GE(static_cast<std::int64_t>(grid.x) * grid.y, blocks);
    EXPECT_LE(grid.x, cuda::kMaxGridX);
    EXPECT_LE(grid.y, cuda::kMaxGridY);
  }
  EXPECT_THROW(cuda::fold_blocks((std::int64_t{1} << 30) * 65535 + 1), ValueError);
}

TEST(CudaAllocator, StatisticsReturnToTheirStart) {
  SKIP_WITHOUT_GPU();
  DeviceBackend& backend = device_backend(DeviceType::cuda);
  const std::size_t before = backend.memory_stats(0).live;
  {
    const Tensor a = zeros({1000, 1000}, {DType::float32, kCuda});
    EXPECT_GE(backend.memory_stats(0).live, before + 4000000);
    const Tensor b = add(a, a);
    EXPECT_GE(backend.memory_stats(0).peak, before + 8000000);
  }
  EXPECT_EQ(backend.memory_stats(0).live, before);
}

TEST(CudaAllocator, FreedBlocksAreUsedAgain) {
  SKIP_WITHOUT_GPU();
  if (std::getenv("TENON_CUDA_NO_CACHE") != nullptr) GTEST_SKIP() << "the cache is switched off";
  DeviceBackend& backend = device_backend(DeviceType::cuda);
  void* first = backend.allocate(123456, 0);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % 256, 0U);
  backend.free(first, 123456, 0);
  const std::size_t cached = backend.memory_stats(0).cached;
  void* second = backend.allocate(123400, 0);
  EXPECT_EQ(second, first);
  EXPECT_LT(backend.memory_stats(0).cached, cached);
  backend.free(second, 123400, 0);
  cuda::device_context(0).allocator().release_cached();
  EXPECT_EQ(backend.memory_stats(0).cached, 0U);
}

TEST(CudaAllocator, AbsurdSizesAreTypedErrorsAndHarmless) {
  SKIP_WITHOUT_GPU();
  DeviceBackend& backend = device_backend(DeviceType::cuda);
  const std::size_t before = backend.memory_stats(0).live;
  for (const std::size_t bytes : {std::size_t{1} << 50, ~std::size_t{0}, ~std::size_t{0} - 600}) {
    try {
      backend.allocate(bytes, 0);
      FAIL() << "nothing was thrown for " << bytes << " bytes";
    } catch (const OutOfMemory& error) {
      EXPECT_EQ(error.requested, bytes);
      EXPECT_EQ(error.live_bytes, before);
      EXPECT_NE(std::string(error.what()).find("out of memory on cuda:0"), std::string::npos);
    }
    const Tensor x = ones({100}, {DType::float32, kCuda});
    EXPECT_EQ(sum(x).item(), 100);
  }
  EXPECT_EQ(backend.memory_stats(0).live, before);
}

// More than half of the free memory twice: the second needs the first's cached block given back.
TEST(CudaAllocator, CachedBlocksAreGivenBackBeforeMemoryIsShort) {
  SKIP_WITHOUT_GPU();
  DeviceBackend& backend = device_backend(DeviceType::cuda);
  std::size_t free_now = 0;
  try {
    backend.allocate(std::size_t{1} << 60, 0);
  } catch (const OutOfMemory& error) {
    free_now = error.free_bytes;
  }
  ASSERT_GT(free_now, std::size_t{64} << 20);
  const std::size_t large = free_now / 10 * 6;
  void* first = backend.allocate(large, 0);
  backend.free(first, large, 0);
  const std::size_t other =
      free_now / 10 * 4 + free_now / 20 * 3;  // fits no cached block, nor beside it
  void* second = backend.allocate(other, 0);
  backend.free(second, other, 0);
  cuda::device_context(0).allocator().release_cached();
}

TEST(CudaBackend, CopiesBothWays) {
  SKIP_WITHOUT_GPU();
  Generator generator(41);
  for (const std::int64_t n : {1, 1000, 5000000}) {
    const Tensor host = uniform({n}, 0, 1, {}, &generator);
    const Tensor device = host.to(kCuda);
    expect_bit_equal(device, host, "a copy there and back");
    expect_bit_equal(device.clone(), host, "a copy within the device");
  }
  EXPECT_EQ(zeros({0}, {DType::float32, kCuda}).cpu().to_doubles().size(), 0U);
}

TEST(CudaBackend, CountsKernels) {
  SKIP_WITHOUT_GPU();
  DeviceBackend& backend = device_backend(DeviceType::cuda);
  const Tensor x = ones({100, 100}, {DType::float32, kCuda});
  Tensor y = exp(add(x, x));
  EXPECT_EQ(backend.count_kernels(0, [&] { y = exp(add(x, x)); }), 2);
  EXPECT_EQ(backend.count_kernels(0, [&] { y = x.transpose(0, 1); }), 0);
  EXPECT_EQ(backend.count_kernels(0, [] {}), 0);
  // Reading a result while kernels are counted is refused, and the stream is usable afterwards.
  EXPECT_THROW(backend.count_kernels(0, [&] { exp(x).to_doubles(); }), DeviceError);
  EXPECT_EQ(sum(x).item(), 10000);
}

TEST(CudaBackend, TimesAndNames) {
  SKIP_WITHOUT_GPU();
  DeviceBackend& backend = device_backend(DeviceType::cuda);
  EXPECT_FALSE(backend.device_name(0).empty());
  const Tensor x = ones({1000, 1000}, {DType::float32, kCuda});
  EXPECT_GT(backend.time_ms(0, [&] { exp(x); }), 0);
  backend.synchronize(0);
}

TEST(CudaBackend, MissingDevicesAreErrors) {
  EXPECT_FALSE(is_available({DeviceType::cuda, 63}));
  EXPECT_THROW(empty(Shape{2}, {DType::float32, {DeviceType::cuda, 63}}), DeviceError);
  if (is_available(kCuda)) return;
  try {
    zeros({2}, {DType::float32, kCuda});
    FAIL() << "nothing was thrown";
  } catch (const DeviceError& error) {
    EXPECT_EQ(std::string(error.what()).find("no CUDA device: "), 0U) << error.what();
    EXPECT_FALSE(device_backend(DeviceType::cuda).unavailable_reason().empty());
  }
}

}  // namespace
}  // namespace tenon::test
