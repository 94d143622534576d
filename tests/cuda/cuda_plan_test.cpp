// The host side of CUDA kernels, which needs no GPU: merging of axes, indices to offsets, and how
// reductions and rows are laid over threads.
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "cuda/gemm.h"
#include "cuda/kernels/linear_cross_entropy.h"
#include "cuda/kernels/pointwise_plan.h"
#include "cuda/kernels/reduce_plan.h"
#include "cuda/kernels/row_plan.h"
#include "cuda/launch.h"
#include "cuda/strides.h"

namespace tenon::cuda {
namespace {

TensorView view_of(const Extents& sizes, const Extents& strides) {
  TensorView view;
  view.sizes = sizes;
  view.strides = strides;
  return view;
}

TEST(CudaPointwise, VectorsNeedAlignedStretches) {
  constexpr PointwiseShape kShape{4, 2048};
  const auto plan = [&](const Extents& sizes, const Extents& strides, std::uintptr_t address) {
    TensorView output = view_of(sizes, contiguous_strides(sizes));
    output.data = reinterpret_cast<void*>(std::uintptr_t{1} << 20);
    TensorView input = view_of(sizes, strides);
    input.data = reinterpret_cast<void*>(address);
    const TensorView views[] = {output, input};
    return plan_pointwise(views, kShape);
  };
  const PointwisePlan flat = plan({2, 1027}, {1027, 1}, 4096);
  EXPECT_EQ(flat.first_single, 2052) << "both axes are one";
  EXPECT_EQ(flat.vector_blocks, 2);
  EXPECT_EQ(flat.blocks, 3) << "two elements are left";
  EXPECT_EQ(plan({2, 1024}, {1024, 1}, 4096).blocks, 1);
  EXPECT_EQ(plan({2, 1024}, {1024, 1}, 4100).vector_blocks, 0) << "the address is not aligned";
  EXPECT_EQ(plan({2, 1024}, {1025, 1}, 4096).vector_blocks, 0) << "the second row is not aligned";
  EXPECT_EQ(plan({2, 1024}, {0, 1}, 4096).vector_blocks, 1) << "a repeated row";
  EXPECT_EQ(plan({2, 1022}, {1024, 1}, 4096).vector_blocks, 0) << "rows are no whole vectors";
  EXPECT_EQ(plan({0, 1024}, {1024, 1}, 4096).blocks, 0);
}

TEST(CudaStrides, DivisorIsExact) {
  std::mt19937_64 random(1);
  for (const std::uint32_t divisor :
       {1U, 2U, 3U, 7U, 10U, 641U, 65535U, 65536U, 1000003U, (1U << 30) + 1, (1U << 31) - 1}) {
    const Divisor fixed(divisor);
    for (int i = 0; i < 2000; ++i) {
      const auto n = static_cast<std::uint32_t>(random() & 0x7fffffffU);
      for (const std::uint32_t value : {n, n / divisor * divisor, 0x7fffffffU, n % divisor}) {
        ASSERT_EQ(fixed.divide(value), value / divisor) << value << " / " << divisor;
      }
    }
  }
}

TEST(CudaStrides, MergesNeighbours) {
  const TensorView flat = view_of({2, 3, 4}, {12, 4, 1});
  const TensorView views[] = {flat, flat};
  EXPECT_EQ(collapse_axes(views, true).sizes, Extents({24}));

  const TensorView row = view_of({4}, {1});
  const TensorView broadcast[] = {flat, row};
  const StridedAxes axes = collapse_axes(broadcast, true);
  EXPECT_EQ(axes.sizes, Extents({6, 4}));
  EXPECT_EQ(axes.strides[0], Extents({4, 1}));
  EXPECT_EQ(axes.strides[1], Extents({0, 1}));

  // A permuted output and an input permuted likewise are one flat call.
  const TensorView permuted = view_of({3, 2, 4}, {4, 12, 1});
  const TensorView same[] = {permuted, permuted};
  EXPECT_EQ(collapse_axes(same, true).sizes, Extents({24}));
}

TEST(CudaStrides, KeepsOneAxis) {
  const TensorView scalar = view_of({}, {});
  const TensorView ones = view_of({1, 1}, {5, 9});
  for (const TensorView& view : {scalar, ones}) {
    const TensorView views[] = {view};
    EXPECT_EQ(collapse_axes(views, true).sizes, Extents({1}));
  }
}

/// Offsets must be those of the logical index, whatever was merged.
TEST(CudaStrides, OffsetsAreThoseOfTheIndex) {
  const Extents sizes = {3, 1, 4, 5};
  const Extents strides[] = {{20, 7, 5, 1}, {0, 3, 1, 4}};
  const StridedAxes axes = collapse_axes(sizes, strides, /*sort=*/false);
  const IndexMap<2> map(axes);
  for (std::int64_t index = 0; index < 60; ++index) {
    std::int64_t offsets[2];
    map.offsets(index, offsets);
    const std::int64_t i = index / 20, j = index / 5 % 4, k = index % 5;
    EXPECT_EQ(offsets[0], 20 * i + 5 * j + k);
    EXPECT_EQ(offsets[1], j + 4 * k);
  }
}

TEST(CudaStrides, WideIndices) {
  const std::int64_t half = std::int64_t{1} << 31;
  const Extents sizes = {3, half};
  const Extents strides[] = {{1, 3}};
  const IndexMap<1> map(collapse_axes(sizes, strides, /*sort=*/false));
  EXPECT_TRUE(map.wide);
  std::int64_t offset[1];
  map.offsets(2 * half + 5, offset);
  EXPECT_EQ(offset[0], 2 + 15);
}

TEST(CudaPlans, SplitsCoverEachInputOnce) {
  for (const Extents& sizes : {Extents{1000000}, Extents{3, 70001}, Extents{1 << 20, 8},
                               Extents{40000, 3}, Extents{5, 5}}) {
    for (std::int64_t axis = 0; axis < sizes.size(); ++axis) {
      const ReducePlan plan = plan_reduction(view_of(sizes, contiguous_strides(sizes)), {axis});
      EXPECT_EQ(plan.outputs * plan.count, sizes.product());
      EXPECT_GE(plan.splits * plan.split_size, plan.count);
      EXPECT_LT((plan.splits - 1) * plan.split_size, plan.count) << "an empty split";
      EXPECT_LE(plan.splits, 1024);
      if (!plan.by_columns) {
        EXPECT_TRUE(plan.lanes == kReduceThreads || (plan.lanes <= 32 && 32 % plan.lanes == 0));
      }
      if (plan.splits > 1) EXPECT_EQ(plan.split_size % 16, 0);
    }
  }
}

TEST(CudaPlans, ColumnsAreReadBySixteenBytesWhereTheyAllow) {
  const auto plan = [](const Extents& sizes, const Extents& strides, DType dtype) {
    TensorView view = view_of(sizes, strides);
    view.dtype = dtype;
    return plan_reduction(view, {0});
  };
  EXPECT_EQ(plan({32768, 768}, {768, 1}, DType::bfloat16).columns, 8);
  EXPECT_EQ(plan({32768, 768}, {768, 1}, DType::float32).columns, 4);
  EXPECT_EQ(plan({32768, 770}, {770, 1}, DType::bfloat16).columns, 1);
  EXPECT_EQ(plan({32768, 768}, {768, 1}, DType::int32).columns, 1) << "integers one by one";
  EXPECT_EQ(plan({32768, 768}, {770, 1}, DType::bfloat16).columns, 1) << "rows are not aligned";
  // A bias gradient fills the GPU; a few long rows need no splits.
  EXPECT_GT(plan({32768, 768}, {768, 1}, DType::bfloat16).blocks, 4 * 132);
  for (const std::int64_t rows : {8, 32}) {
    const ReducePlan batch = plan({rows, 1024 * 768}, {1024 * 768, 1}, DType::bfloat16);
    EXPECT_EQ(batch.column_threads, kReduceThreads);
    EXPECT_EQ(batch.splits, 1);
  }
  for (const std::int64_t cols : {8, 24, 64, 200, 4096}) {
    const ReducePlan narrow = plan({1000, cols}, {cols, 1}, DType::float16);
    EXPECT_EQ(kReduceThreads % narrow.column_threads, 0);
    EXPECT_GE(narrow.blocks * narrow.column_threads * narrow.columns, cols * narrow.splits);
  }
}

TEST(CudaPlans, ReductionsRunAlongMemory) {
  const Extents sizes = {4096, 1024};
  const TensorView matrix = view_of(sizes, contiguous_strides(sizes));
  EXPECT_FALSE(plan_reduction(matrix, {1}).by_columns);
  EXPECT_TRUE(plan_reduction(matrix, {0}).by_columns);
  EXPECT_FALSE(plan_reduction(matrix, {}).by_columns);
  EXPECT_GT(plan_reduction(matrix, {}).splits, 1);
}

TEST(CudaPlans, RowsFitTheirThreads) {
  for (const int chunks : {2, 4}) {
    for (std::int64_t cols = 1; cols < 40000; cols = cols * 5 / 4 + 1) {
      const RowPlan plan = plan_rows(100, cols, chunks);
      EXPECT_EQ(plan.threads % 32, 0);
      EXPECT_LE(plan.threads, kMaxRowThreads);
      if (plan.lanes <= 32) {
        EXPECT_EQ(32 % plan.lanes, 0);
        EXPECT_EQ(plan.blocks, (100 * plan.lanes + plan.threads - 1) / plan.threads);
      } else {
        EXPECT_EQ(plan.lanes, plan.threads);
        EXPECT_EQ(plan.blocks, 100);
      }
      EXPECT_EQ(plan.fits, cols <= std::int64_t{plan.lanes} * chunks * kRowGroup);
      if (cols <= kMaxRowThreads * chunks * kRowGroup) EXPECT_TRUE(plan.fits) << cols;
    }
  }
}

TEST(GemmPlan, SplitsLongSumsOfSmallResultsOnly) {
  struct Sample {
    std::int64_t m, n, k, batch;
    bool split;
  };
  const Sample samples[] = {
      {768, 768, 32768, 1, true},    // 36 tiles: a weight gradient
      {768, 768, 4096, 1, true},     // the same for 4096 tokens
      {3072, 768, 32768, 1, true},   // 144 tiles: little more than one wave
      {768, 768, 2048, 1, false},    // the sum is short
      {128, 768, 3072, 1, true},     // but long for six tiles
      {128, 1152, 3072, 1, false},
      {128, 768, 1024, 1, false},
      {32768, 768, 3072, 1, false},  // a layer's product
      {4096, 1024, 4096, 1, true},   // 256 tiles, the last number below two waves
      {4096, 1152, 4096, 1, false},  // 288 tiles
      {50304, 768, 4096, 1, false},  // an output layer's weight gradient
      {128, 128, 65536, 16, true},   // a batch counts
      {128, 128, 65536, 264, false}, {1, 1, 1 << 20, 1, true},
  };
  for (const Sample& s : samples) {
    const GemmProblem problem{
        .dtype = DType::bfloat16, .m = s.m, .n = s.n, .k = s.k, .batch = s.batch};
    EXPECT_EQ(may_split_k(problem, 132), s.split) << s.m << " x " << s.n << " x " << s.k;
  }
  // Without tensor cores a short sum of a few tiles is long.
  const GemmProblem few{.dtype = DType::float32, .m = 128, .n = 3072, .k = 1024};
  const GemmProblem shorter{.dtype = DType::float32, .m = 128, .n = 3072, .k = 256};
  const GemmProblem many{.dtype = DType::float32, .m = 4096, .n = 3072, .k = 1024};
  EXPECT_TRUE(may_split_k(few, 132));
  EXPECT_FALSE(may_split_k(shorter, 132));
  EXPECT_FALSE(may_split_k(many, 132));
}

TEST(CudaPlans, RowStreamsCoverEachRowOnce) {
  constexpr DeviceLimits kH200{9, 0, 132, 227 << 10, 228 << 10};
  constexpr RowStreamNeeds kNeeds[] = {{2, 1, 1}, {4, 2, 1}, {8, 2, 1}, {2, 2, 2},
                                       {2, 3, 4}, {4, 3, 4}, {4, 3, 5}, {8, 3, 5}};
  for (const RowStreamNeeds& needs : kNeeds) {
    for (std::int64_t cols = 1; cols < 40000; cols = cols * 5 / 4 + 1) {
      for (const std::int64_t rows : {1, 7, 1000, 32768}) {
        const RowStreamPlan plan = plan_row_stream(rows, cols, needs, kH200);
        const std::string what = std::to_string(rows) + " x " + std::to_string(cols);
        const std::int64_t rows_of_block = plan.threads / plan.lanes;
        EXPECT_EQ(plan.threads % plan.lanes, 0) << what;
        EXPECT_GE(plan.row_blocks * rows_of_block, rows) << what;
        EXPECT_LT((plan.row_blocks - 1) * rows_of_block, rows) << what;
        EXPECT_GE(plan.blocks, 1) << what;
        EXPECT_LE(plan.blocks, plan.row_blocks) << what;
        if (plan.lanes <= 32) EXPECT_EQ(plan.threads, kStreamThreads) << what;
        const int most = needs.element_bytes == 8 ? row_chunks<double> : row_chunks<float>;
        EXPECT_LE(plan.chunks, most) << what;
        EXPECT_GE(plan.chunks, most / 2) << what;
        if (!plan.fits) {
          EXPECT_GT(cols, 4096) << what;
          continue;
        }
        // Only the last chunk may reach beyond the row.
        const std::int64_t cols_of_chunk = plan.lanes * kRowGroup;
        EXPECT_LE(cols, plan.chunks * cols_of_chunk) << what;
        EXPECT_GE(ceil_div(cols, kRowGroup), (plan.chunks - 1) * plan.lanes) << what;
        EXPECT_LE(plan.threads, largest_stream_block(needs, plan.chunks)) << what;
        EXPECT_EQ(plan.shared_bytes, kRowStreamStages * needs.operands * plan.threads *
                                         plan.chunks * std::size_t{kRowGroup} * needs.element_bytes)
            << what;
        EXPECT_LE(plan.shared_bytes, std::size_t{217} << 10) << what;
      }
    }
  }
  const RowStreamPlan gpt2 = plan_row_stream(32768, 768, {2, 3, 4}, kH200);
  EXPECT_EQ(gpt2.lanes, 32);
  EXPECT_EQ(gpt2.chunks, 3);
  EXPECT_EQ(gpt2.blocks, 132 * 3);
}

TEST(CudaLinearCrossEntropy, LogitsOfAChunkAreBounded) {
  constexpr std::size_t kMebi = std::size_t{1} << 20;
  for (const DType dtype : {DType::bfloat16, DType::float32, DType::float64}) {
    for (const std::int64_t rows : {1, 127, 128, 129, 4096, 32768, 100001}) {
      for (const std::int64_t classes : {1, 10, 50257, 50304, 128256, 3000000}) {
        const LossPlan plan = plan_linear_cross_entropy({rows, 768, classes, dtype, true});
        EXPECT_TRUE(plan.rows_of_chunk == rows || plan.rows_of_chunk % 128 == 0);
        EXPECT_GE(plan.rows_of_chunk * plan.chunks, rows);
        EXPECT_LT(plan.rows_of_chunk * (plan.chunks - 1), rows);
        EXPECT_GE(plan.pitch, classes);
        EXPECT_EQ(plan.pitch * static_cast<std::int64_t>(size_of(dtype)) % 16, 0);
        const std::size_t logits = plan.weight_sum - plan.logits;
        EXPECT_GE(logits,
                  static_cast<std::size_t>(plan.rows_of_chunk * plan.pitch) * size_of(dtype));
        EXPECT_TRUE(logits <= 448 * kMebi || plan.rows_of_chunk <= 128);
        EXPECT_EQ(plan.sums_in_float, dtype == DType::bfloat16 && plan.chunks > 1);
        EXPECT_EQ(plan.losses % 256 + plan.logits % 256 + plan.weight_sum % 256, 0U);
      }
    }
  }
  const LossPlan gpt2 = plan_linear_cross_entropy({32768, 768, 50304, DType::bfloat16, true});
  EXPECT_EQ(gpt2.rows_of_chunk, 4096);
  EXPECT_EQ(gpt2.chunks, 8);
  EXPECT_FALSE(
      plan_linear_cross_entropy({32768, 768, 50304, DType::bfloat16, false}).sums_in_float);
}

}  // namespace
}  // namespace tenon::cuda
