// How the gradient of an attention mask is cut into blocks' work, without a GPU.
#include <gtest/gtest.h>

#include "cuda/kernels/attention_backward.h"

namespace tenon {
namespace {

constexpr int kMultiprocessors = 132;

/// Batches (4, 12) of 512 queries and 320 keys; a mask is repeated along axes of stride 0.
cuda::AttentionBackwardParams problem(std::int64_t of_batch, std::int64_t of_head,
                                      std::int64_t of_row, std::int64_t of_column) {
  cuda::AttentionBackwardParams params{};
  params.batch_axes = 2;
  params.batch_sizes[0] = 4;
  params.batch_sizes[1] = 12;
  params.batches = 48;
  params.length = 512;
  params.keys = 320;
  params.head = params.head_v = 64;
  params.d_mask_strides.batch[0] = of_batch;
  params.d_mask_strides.batch[1] = of_head;
  params.d_mask_strides.row = of_row;
  params.d_mask_strides.column = of_column;
  return params;
}

/// All steps of all chunks are the tiles of all scores, each once.
void expect_whole(const cuda::MaskGradientPlan& plan) {
  EXPECT_EQ(plan.matrices * plan.sharing, 48);
  EXPECT_EQ(plan.matrices * plan.row_owners * plan.key_owners * plan.steps,
            48 * plan.row_tiles * plan.key_tiles);
  EXPECT_GE(plan.chunks * plan.chunk_steps, plan.steps);
  EXPECT_LT((plan.chunks - 1) * plan.chunk_steps, plan.steps);
}

TEST(CudaMaskGradientPlan, EveryScoreIsAddedOnce) {
  for (const std::int64_t of_batch : {0, 1}) {
    for (const std::int64_t of_head : {0, 1}) {
      for (const std::int64_t of_row : {0, 1}) {
        for (const std::int64_t of_column : {0, 1}) {
          for (const std::int64_t head : {8, 64, 72, 128}) {
            auto params = problem(of_batch, of_head, of_row, of_column);
            params.head = head;
            expect_whole(cuda::plan_mask_gradient(params, kMultiprocessors));
          }
        }
      }
    }
  }
}

TEST(CudaMaskGradientPlan, FewTilesOfTheMaskAreSummedInChunks) {
  // A bias of each head, 12 · 4 · 5 tiles that 4 batches share: nearly enough blocks.
  auto plan = cuda::plan_mask_gradient(problem(0, 1, 320, 1), kMultiprocessors);
  EXPECT_EQ(plan.steps, 4);
  EXPECT_EQ(plan.chunks, 2);
  // A bias of all heads: 20 tiles, of 48 steps each.
  plan = cuda::plan_mask_gradient(problem(0, 0, 320, 1), kMultiprocessors);
  EXPECT_EQ(plan.steps, 48);
  EXPECT_GE(20 * plan.chunks, 2 * kMultiprocessors - 40);
  // One number: every score is added to it.
  plan = cuda::plan_mask_gradient(problem(0, 0, 0, 0), kMultiprocessors);
  EXPECT_EQ(plan.steps, 48 * 4 * 5);
  EXPECT_EQ(plan.mask_rows * plan.mask_keys * plan.matrices, 1);
  EXPECT_GT(plan.chunks, kMultiprocessors);
  // One of its own for each score: nothing to add up.
  plan = cuda::plan_mask_gradient(problem(1, 1, 320, 1), kMultiprocessors);
  EXPECT_EQ(plan.steps, 1);
  EXPECT_EQ(plan.chunks, 1);
}

}  // namespace
}  // namespace tenon
