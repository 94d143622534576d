// Which of cuBLASLt's algorithms is expected to be fastest: the sizes of tiles by their numbers, and choices
// as they were measured on an H200; which kernel computes a product.
#include "cuda/gemm_rank.h"

#include <cublasLt.h>

#include "cuda/kernels/gemm_choice.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_gemm_rank_test {

using cuda::GemmAlgorithm;
using cuda::GemmProblem;
using cuda::TileShape;

GemmAlgorithm algorithm(std::uint32_t tile, std::uint32_t cluster, std::uint32_t custom = 1,
                        std::uint32_t parts = 1) {
  return {66, tile, parts, parts > 1 ? 2U : 0U, 0, custom, 35, 0, cluster};
}

TEST(CudaGemmRank, TilesAreThoseOfTheLibrary) {
  struct Case {
    cublasLtMatmulTile_t tile;
    int n, m;
  };
  const Case cases[] = {{CUBLASLT_MATMUL_TILE_8x8, 8, 8},
                        {CUBLASLT_MATMUL_TILE_256x32, 256, 32},
                        {CUBLASLT_MATMUL_TILE_8x128, 8, 128},
                        {CUBLASLT_MATMUL_TILE_56x768, 56, 768},
                        {CUBLASLT_MATMUL_TILE_88x512, 88, 512},
                        {CUBLASLT_MATMUL_TILE_192x256, 192, 256},
                        {CUBLASLT_MATMUL_TILE_384x128, 384, 128},
                        {CUBLASLT_MATMUL_TILE_768x64, 768, 64},
                        {CUBLASLT_MATMUL_TILE_64x16, 64, 16},
                        {CUBLASLT_MATMUL_TILE_128x272, 128, 272},
                        {CUBLASLT_MATMUL_TILE_192x176, 192, 176},
                        {CUBLASLT_MATMUL_TILE_256x256, 256, 256},
                        {CUBLASLT_MATMUL_TILE_448x64, 448, 64},
                        {CUBLASLT_MATMUL_TILE_512x128, 512, 128},
                        {CUBLASLT_MATMUL_TILE_768x80, 768, 80}};
  for (const Case& c : cases) {
    const auto shape = cuda::tile_shape_of(algorithm(c.tile, CUBLASLT_CLUSTER_SHAPE_2x4x1));
    ASSERT_TRUE(shape) << c.n << " x " << c.m;
    EXPECT_EQ(shape->n, c.n) << c.m;
    EXPECT_EQ(shape->m, c.m) << c.n;
    EXPECT_EQ(shape->cluster_n, 2);
    EXPECT_EQ(shape->cluster_m, 4);
  }
}

TEST(CudaGemmRank, OtherAlgorithmsHaveNoExpectedTime) {
  GemmAlgorithm good = algorithm(CUBLASLT_MATMUL_TILE_128x128, CUBLASLT_CLUSTER_SHAPE_2x1x1);
  EXPECT_TRUE(cuda::tile_shape_of(good));
  const auto with = [&](std::size_t attribute, std::uint32_t value) {
    GemmAlgorithm changed = good;
    changed[attribute] = value;
    return cuda::tile_shape_of(changed).has_value();
  };
  EXPECT_FALSE(with(CUBLASLT_ALGO_CONFIG_ID, 24));
  EXPECT_FALSE(with(CUBLASLT_ALGO_CONFIG_TILE_ID, CUBLASLT_MATMUL_TILE_UNDEFINED));
  EXPECT_FALSE(with(CUBLASLT_ALGO_CONFIG_TILE_ID, CUBLASLT_MATMUL_TILE_END));
  EXPECT_FALSE(with(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 0));
  EXPECT_FALSE(with(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 0xffffffffU));
  EXPECT_FALSE(with(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, CUBLASLT_CLUSTER_SHAPE_AUTO));
  EXPECT_FALSE(with(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 5000));
}

/// The library names the first one first; the other is as much faster as it says.
TEST(CudaGemmRank, ChoosesWhatWasMeasuredToBeFaster) {
  struct Case {
    std::int64_t m, n, k;
    GemmAlgorithm first, faster;
  };
  const Case cases[] = {
      // 32.6 and 28.7 µs: epilogues beside the next tile.
      {8192, 2048, 512, algorithm(CUBLASLT_MATMUL_TILE_256x128, CUBLASLT_CLUSTER_SHAPE_1x2x1, 7),
       algorithm(CUBLASLT_MATMUL_TILE_128x128, CUBLASLT_CLUSTER_SHAPE_2x1x1, 1)},
      // 23.6 and 13.5 µs: a sum in two parts, and half as many readers of one row.
      {1, 4096, 4096, algorithm(CUBLASLT_MATMUL_TILE_32x64, CUBLASLT_CLUSTER_SHAPE_2x1x1, 0),
       algorithm(CUBLASLT_MATMUL_TILE_64x8, CUBLASLT_CLUSTER_SHAPE_2x1x1, 1, 2)},
      // 6.9 and 4.9 µs.
      {4, 1024, 1024, algorithm(CUBLASLT_MATMUL_TILE_8x64, CUBLASLT_CLUSTER_SHAPE_2x1x1, 0),
       algorithm(CUBLASLT_MATMUL_TILE_64x8, CUBLASLT_CLUSTER_SHAPE_4x1x1, 1)}};
  for (const Case& c : cases) {
    const GemmProblem p{.dtype = DType::bfloat16, .m = c.m, .n = c.n, .k = c.k};
    const GemmAlgorithm both[] = {c.first, c.faster};
    EXPECT_EQ(cuda::choose_algorithm(p, both, 132), 1U) << c.m << " x " << c.n << " x " << c.k;
    const GemmAlgorithm unknown = {24, 20, 1, 0, 0, 0, 0, 0, 0};
    const GemmAlgorithm mixed[] = {unknown, c.faster};
    EXPECT_EQ(cuda::choose_algorithm(p, mixed, 132), 1U);
    EXPECT_EQ(cuda::choose_algorithm(p, std::span(&unknown, 1), 132), 0U);
  }
}

TEST(CudaGemmRank, TimesGrowWithTheWork) {
  const TileShape tile{128, 128, 2, 1};
  const auto time = [&](std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t batch = 1) {
    return cuda::expected_us({.dtype = DType::float16, .m = m, .n = n, .k = k, .batch = batch},
                             tile, 132);
  };
  EXPECT_LT(time(1, 128, 64), time(1, 128, 640));
  EXPECT_LT(time(4096, 4096, 512), time(8192, 4096, 512));
  EXPECT_NEAR(time(4096, 4096, 512, 4) / time(16384, 4096, 512), 1, 0.05);
  EXPECT_GT(time(1, 1, 1), 2);
}

/// As bench_gemm --plans measured them on an H200.
TEST(CudaGemmChoice, IsWhatWasMeasuredToBeFastest) {
  constexpr cuda::DeviceLimits kH200{9, 0, 132, 227 << 10, 228 << 10};
  if (!cuda::has_wgmma(kH200)) GTEST_SKIP() << "no code for compute capability 9.0";
  using enum cuda::GemmEpilogue;
  using enum cuda::ProductChoice;
  struct Case {
    std::int64_t m, n, k;
    cuda::GemmEpilogue epilogue;
    cuda::ProductChoice choice;
    DType dtype = DType::bfloat16;
  };
  const Case cases[] = {{1, 768, 768, none, skinny},
                        {1, 11008, 4096, none, skinny},
                        {4, 1024, 1024, none, skinny},
                        {8, 4096, 4096, none, cublaslt},
                        {8, 4096, 4096, none, skinny, DType::float32},
                        {16, 4096, 4096, none, cublaslt, DType::float32},
                        {16, 768, 3072, none, split},
                        {64, 768, 3072, none, split},
                        {16, 768, 768, none, cublaslt},
                        {64, 768, 3080, none, cublaslt},  // rows in the middle of sectors
                        {128, 3072, 768, none, cublaslt},
                        {32768, 3072, 768, none, wgmma},
                        {14638, 6744, 728, none, cublaslt},
                        {4096, 1024, 1024, none, cublaslt},
                        {1, 3072, 768, gelu, skinny},
                        {16, 3072, 768, gelu, split},
                        {16, 3072, 768, relu, split},
                        {128, 768, 768, silu, split},
                        {394, 3072, 768, gelu, cublaslt},  // a product, then an activation
                        {2048, 3072, 768, gelu, wgmma},
                        {2048, 3072, 768, relu_gradient, wgmma},
                        {2048, 3072, 768, relu, cublaslt, DType::float32}};
  alignas(16) static char memory[16];
  for (const Case& c : cases) {
    cuda::GemmProblem p{.dtype = c.dtype, .m = c.m, .n = c.n, .k = c.k};
    p.a = {memory, false, c.k, 0};
    p.b = {memory, true, c.k, 0};
    p.d = memory;
    p.d_leading = c.n;
    p.epilogue = c.epilogue;
    if (is_gradient(c.epilogue)) {
      p.aux = memory;
      p.aux_leading = c.n;
    }
    EXPECT_EQ(cuda::choose_product(p, kH200), c.choice)
        << c.m << " x " << c.n << " x " << c.k << ", epilogue " << static_cast<int>(c.epilogue);
  }
}

}  // namespace cuda_gemm_rank_test
}  // namespace tenon::test
