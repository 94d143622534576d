// No elements, or one, on CUDA: every op forward and backward, and the running statistics of batch_norm,
// which an empty batch leaves as they are, eagerly and in a Program.
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/empty_samples.h"

namespace tenon::test {
namespace cuda_empty_test {

TEST(CudaEmpty, EveryOpAnswersWithFiniteGradients) {
  SKIP_WITHOUT_GPU();
  for (const EmptySample& sample : empty_samples()) {
    for (const DType dtype : kFloats) {
      check_empty_sample(sample, dtype, kCuda);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaEmpty, BatchNormsStatisticsStayAsTheyAre) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloats) {
    const TensorOptions options{dtype, kCuda};
    const auto norm = nn::make<nn::BatchNorm2d>(3, 1e-5, 0.1, true, true, options);
    Executor run(create_schedule(norm, {zeros({2, 3, 4, 4}, options)}).graph());
    norm((randn({2, 3, 4, 4}) + 1.0).to(dtype).to(kCuda));
    const auto mean = norm->running_mean.to_doubles(), var = norm->running_var.to_doubles();
    EXPECT_NE(mean, std::vector<double>(3, 0.0));
    for (const Shape& shape : {Shape{0, 3, 4, 4}, Shape{2, 3, 0, 4}}) {
      const Tensor empty = zeros(shape, options);
      EXPECT_EQ(norm(empty).shape(), shape);
      EXPECT_EQ(run.run(std::vector{empty}, /*training=*/true).at(0).shape(), shape);
      EXPECT_EQ(norm->running_mean.to_doubles(), mean) << name(dtype);
      EXPECT_EQ(norm->running_var.to_doubles(), var) << name(dtype);
    }
  }
}

}  // namespace cuda_empty_test
}  // namespace tenon::test
