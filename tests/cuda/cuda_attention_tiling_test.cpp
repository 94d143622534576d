// What attention on CUDA decides without a GPU: the choice of tiles, and the rounds of dropout's numbers
// that rows and columns share.
#include <gtest/gtest.h>

#include "cuda/device/dropout_rounds.h"
#include "cuda/kernels/attention.h"
#include "tests/cuda/cuda_support.h"

namespace tenon {
namespace {

TEST(CudaDropoutRounds, SharedRoundsGiveTheSameNumbers) {
  const std::uint64_t seeds[] = {0, 2024, 0xfedcba9876543210U};
  const std::int64_t rows[] = {0, 1, 511, 0xffffffff, 0x123456789a, kMaxDropoutRows - 1};
  const std::int64_t groups[] = {0, 1, 255, kMaxDropoutCols / 8 - 1};
  for (const std::uint64_t seed : seeds) {
    const cuda::PhiloxKeys keys(seed);
    for (const std::uint32_t site : {0U, 5U, 0xffffffU}) {
      const DropoutKey key{seed, 17 * site + 3, site};
      for (const std::int64_t row : rows) {
        for (const std::int64_t group : groups) {
          const auto high = static_cast<std::uint32_t>(row >> 32);
          const cuda::DropoutRow of_row(keys, key, static_cast<std::uint32_t>(row), high);
          const cuda::DropoutColumns of_columns(keys, key, static_cast<std::uint32_t>(group), high);
          const PhiloxBlock got = cuda::dropout_random8(keys, of_row, of_columns);
          const PhiloxBlock want = dropout_random8(key, row, group);
          for (int i = 0; i < 4; ++i) {
            EXPECT_EQ(got.word[i], want.word[i])
                << "seed " << seed << " site " << site << " row " << row << " group " << group;
          }
        }
      }
    }
  }
}

cuda::AttentionParams problem(std::int64_t batches, std::int64_t length, std::int64_t head) {
  cuda::AttentionParams params{};
  params.batches = batches;
  params.length = length;
  params.keys = length;
  params.head = head;
  params.head_v = head;
  params.scale_log2 = 0.18;
  return params;
}

TEST(CudaAttentionTiling, LargeProblemsUse128Rows) {
  const auto tiling = cuda::choose_flash_mma_tiling(problem(128, 2048, 64), 132);
  EXPECT_EQ(tiling.variant, cuda::AttentionVariant::plain);
  EXPECT_EQ(tiling.rows, 128);
  EXPECT_EQ(tiling.keys, 64);
  EXPECT_EQ(tiling.head, 64);
  EXPECT_EQ(tiling.shared_bytes, (48 << 10) + cuda::kAttentionBlockBytes);
}

TEST(CudaAttentionTiling, SmallProblemsUse64Rows) {
  EXPECT_EQ(cuda::choose_flash_mma_tiling(problem(16, 512, 64), 132).rows, 64);
  EXPECT_EQ(cuda::choose_flash_mma_tiling(problem(1024, 64, 64), 132).rows, 64);
}

TEST(CudaAttentionTiling, VariantsFollowTheCall) {
  using enum cuda::AttentionVariant;
  cuda::AttentionParams params = problem(128, 2048, 128);
  params.has_dropout = true;
  auto tiling = cuda::choose_flash_mma_tiling(params, 132);
  EXPECT_EQ(tiling.variant, dropout);
  EXPECT_EQ(tiling.shared_bytes, (98 << 10) + cuda::kAttentionBlockBytes);
  params.batches = 1;
  EXPECT_EQ(cuda::choose_flash_mma_tiling(params, 132).variant, general);
  params = problem(128, 2048, 128);
  params.mask_kind = cuda::AttentionMask::boolean;
  EXPECT_EQ(cuda::choose_flash_mma_tiling(params, 132).variant, general);
  params = problem(128, 2048, 128);
  params.scale_log2 = -0.1;
  EXPECT_EQ(cuda::choose_flash_mma_tiling(params, 132).variant, general);
}

TEST(CudaAttentionTiling, HeadsArePaddedAndFitSharedMemory) {
  constexpr std::int64_t kSmallestLimit = 99 << 10;  // compute capabilities 8.6 and 8.9
  for (std::int64_t head = 8; head <= 256; head += 8) {
    const auto tiling = cuda::choose_flash_mma_tiling(problem(64, 4096, head), 132);
    EXPECT_GE(tiling.head, head);
    EXPECT_LE(tiling.shared_bytes + 1024, kSmallestLimit) << head;
  }
  for (const DType dtype : test::kFloats) {
    for (const std::int64_t head_v : {1, 64, 65, 1000}) {
      EXPECT_LE(cuda::choose_flash_simt_tiling(dtype, head_v).shared_bytes + 1024, kSmallestLimit);
    }
  }
}

TEST(CudaAttentionTiling, TensorCoresTakeMultiplesOf8) {
  EXPECT_TRUE(cuda::flash_mma_takes(DType::bfloat16, 64, 64));
  EXPECT_TRUE(cuda::flash_mma_takes(DType::float16, 256, 8));
  EXPECT_FALSE(cuda::flash_mma_takes(DType::float16, 60, 64));
  EXPECT_FALSE(cuda::flash_mma_takes(DType::float16, 64, 264));
  EXPECT_FALSE(cuda::flash_mma_takes(DType::float16, 64, 0));
  EXPECT_FALSE(cuda::flash_mma_takes(DType::float32, 64, 64));
}

TEST(CudaAttentionTiling, Float32OnTensorCores) {
  using enum cuda::AttentionVariant;
  auto tiling = cuda::choose_flash_tf32x3_tiling(problem(128, 512, 64), 132);
  EXPECT_EQ(tiling.variant, plain);
  EXPECT_EQ(tiling.rows, 128);
  EXPECT_EQ(tiling.shared_bytes, 256 * 68 * 4 + cuda::kAttentionBlockBytes);
  tiling = cuda::choose_flash_tf32x3_tiling(problem(16, 128, 64), 132);
  EXPECT_EQ(tiling.variant, plain);
  EXPECT_EQ(tiling.rows, 64);
  cuda::AttentionParams params = problem(128, 512, 64);
  params.has_dropout = true;
  EXPECT_EQ(cuda::choose_flash_tf32x3_tiling(params, 132).variant, dropout);
  params.mask_kind = cuda::AttentionMask::additive;
  EXPECT_EQ(cuda::choose_flash_tf32x3_tiling(params, 132).variant, general);
  for (std::int64_t head = 4; head <= 128; head += 4) {
    tiling = cuda::choose_flash_tf32x3_tiling(problem(64, 4096, head), 132);
    EXPECT_GE(tiling.head, head);
    EXPECT_LE(tiling.shared_bytes, cuda::kTf32SharedBytes) << head;
  }
  EXPECT_TRUE(cuda::flash_tf32x3_takes(DType::float32, 60, 128));
  EXPECT_FALSE(cuda::flash_tf32x3_takes(DType::float32, 62, 64));
  EXPECT_FALSE(cuda::flash_tf32x3_takes(DType::float32, 64, 132));
  EXPECT_FALSE(cuda::flash_tf32x3_takes(DType::float32, 0, 64));
  EXPECT_FALSE(cuda::flash_tf32x3_takes(DType::bfloat16, 64, 64));
}

}  // namespace
}  // namespace tenon
