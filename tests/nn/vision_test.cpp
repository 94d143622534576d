// Conv2d, BatchNorm2d, pooling and RMSNorm: names, initial values, printed text, and running statistics.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "autograd/autograd.h"
#include "graph/executor.h"
#include "nn/nn.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "schedule/verification.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::max_difference;

std::vector<std::string> keys_of(const nn::Module& module) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : module.named_parameters()) names.push_back(name);
  for (const auto& [name, tensor] : module.named_buffers()) names.push_back(name);
  return names;
}

TEST(VisionLayers, PrintAsInPyTorch) {
  EXPECT_EQ(nn::make<nn::Conv2d>(3, 8, 3)->to_string(),
            "Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))");
  EXPECT_EQ(nn::make<nn::Conv2d>(4, 8, Size2{3, 5}, Size2{2, 1}, Size2{1, 2}, Size2{1, 2}, 2, false)
                ->to_string(),
            "Conv2d(4, 8, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), "
            "groups=2, bias=False)");
  EXPECT_EQ(nn::make<nn::BatchNorm2d>(8)->to_string(),
            "BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)");
  EXPECT_EQ(nn::make<nn::MaxPool2d>(2)->to_string(),
            "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)");
  EXPECT_EQ(nn::make<nn::AvgPool2d>(Size2{3, 2}, Size2{1, 2}, Size2{1, 1})->to_string(),
            "AvgPool2d(kernel_size=(3, 2), stride=(1, 2), padding=1)");
  EXPECT_EQ(nn::make<nn::RMSNorm>(8)->to_string(),
            "RMSNorm((8,), eps=None, elementwise_affine=True)");
}

TEST(VisionLayers, NamesAndInitialValues) {
  const auto conv = nn::make<nn::Conv2d>(4, 6, 3, 1, 0, 1, 2);
  EXPECT_EQ(keys_of(*conv), (std::vector<std::string>{"weight", "bias"}));
  EXPECT_EQ(conv->weight.shape().hints(), (std::vector<std::int64_t>{6, 2, 3, 3}));
  for (const Tensor& tensor : {conv->weight, conv->bias}) {
    double largest = 0;
    for (const double value : tensor.to_doubles()) largest = std::max(largest, std::fabs(value));
    EXPECT_GT(largest, 0);
    EXPECT_LE(largest, 1 / std::sqrt(18.0));
  }
  const auto norm = nn::make<nn::BatchNorm2d>(3);
  EXPECT_EQ(keys_of(*norm), (std::vector<std::string>{"weight", "bias", "running_mean",
                                                      "running_var", "num_batches_tracked"}));
  EXPECT_EQ(norm->running_var.to_doubles(), std::vector<double>(3, 1.0));
  const auto plain = nn::make<nn::BatchNorm2d>(3, 1e-5, 0.1, false, false);
  EXPECT_TRUE(keys_of(*plain).empty());
  EXPECT_EQ(keys_of(*nn::make<nn::RMSNorm>(8)), std::vector<std::string>{"weight"});
}

TEST(VisionLayers, BatchNormMovesItsStatisticsInTrainingOnly) {
  const auto norm = nn::make<nn::BatchNorm2d>(2);
  const Tensor x = tensor({1, 3, 10, 20, 5, 7, 30, 40}, {2, 2, 1, 2});  // channel means 4 and 25
  norm->train();
  norm(x);
  const auto expect_statistics = [&] {
    EXPECT_LT(max_difference(norm->running_mean, tensor({0.4, 2.5}, {2})), 1e-6);
    // Unbiased variances 20/3 and 500/3.
    EXPECT_LT(max_difference(norm->running_var, tensor({0.9 + 2.0 / 3, 0.9 + 50.0 / 3}, {2})),
              1e-5);
  };
  expect_statistics();
  norm->eval();
  const Tensor y = norm(x);
  expect_statistics();
  const double expected = (1 - 0.4) / std::sqrt(0.9 + 2.0 / 3 + 1e-5);
  EXPECT_NEAR(y.to_doubles()[0], expected, 1e-5);
}

TEST(VisionLayers, BatchNormWithoutStatisticsUsesTheBatchInEvaluationToo) {
  const auto norm = nn::make<nn::BatchNorm2d>(1, 0.0, 0.1, false, false);
  norm->eval();
  EXPECT_LT(max_difference(norm(tensor({1, 3}, {2, 1, 1, 1})), tensor({-1, 1}, {2, 1, 1, 1})),
            1e-6);
}

struct SmallNet : nn::Module {
  SmallNet()
      : conv(add<nn::Conv2d>("conv", 2, 4, 3, 1, 1)),
        norm(add<nn::BatchNorm2d>("norm", 4)),
        pool(add<nn::MaxPool2d>("pool", 2)) {}
  Tensor forward(const Tensor& x) const { return pool(relu(norm(conv(x)))); }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
  nn::Child<nn::MaxPool2d> pool;
};

TEST(VisionLayers, OneTraceServesTrainingAndEvaluation) {
  const auto model = nn::make<SmallNet>();
  const Tensor x = randn({3, 2, 8, 6});
  const Schedule schedule = create_schedule(model, {x});
  EXPECT_EQ(max_difference(model->norm->running_mean, zeros({4})), 0) << "tracing moved them";
  Executor run(schedule.graph());
  const Tensor inputs[] = {x};
  model->eval();
  const Tensor in_evaluation = run.run(inputs, /*training=*/false).at(0);
  EXPECT_EQ(in_evaluation.shape().hints(), (std::vector<std::int64_t>{3, 4, 4, 3}));
  EXPECT_EQ(max_difference(model->norm->running_mean, zeros({4})), 0);
  EXPECT_LT(max_difference(in_evaluation, model(x)), 1e-6);

  const Tensor traced = run.run(inputs, /*training=*/true).at(0);
  const Tensor moved = model->norm->running_mean.clone();
  EXPECT_GT(max_difference(moved, zeros({4})), 0);
  Tensor(model->norm->running_mean).copy_(zeros({4}));
  Tensor(model->norm->running_var).copy_(ones({4}));
  model->train();
  EXPECT_LT(max_difference(traced, model(x)), 1e-6);
  EXPECT_LT(max_difference(moved, model->norm->running_mean), 1e-6);
}

TEST(VisionLayers, GradientsAndStatisticsOfATraceAreTheEagerOnes) {
  const auto model = nn::make<SmallNet>();
  const Schedule schedule = create_schedule(model, {randn({3, 2, 8, 6})});
  const VerifyReport report = verify(schedule);
  EXPECT_TRUE(report.ok()) << report.to_string();
}

TEST(VisionLayers, OneJointGraphServesEverySize) {
  const Tensor weight = randn({4, 2, 3, 3});
  const auto model = test::function_model([weight](const Tensor& x) {
    const Tensor y = conv2d(x, weight, Tensor(), {1, 1}, {1, 1});
    const Tensor z = batch_norm(y, Tensor(), Tensor());
    return avg_pool2d(max_pool2d(z, {2, 2}, {2, 2}), {2, 2}, {1, 1});
  });
  const GradientGraph joint =
      differentiate(create_schedule(model, {{"x", randn({3, 2, 8, 6})}}).graph(), {});
  Executor run(joint.graph);
  for (const std::int64_t samples : {3, 1, 5}) {
    for (const std::int64_t height : {8, 12}) {
      const Tensor x = randn({samples, 2, height, 6}).requires_grad_();
      const Tensor y = model(x);
      const Tensor inputs[] = {x.detach(), randn(y.shape())};
      const auto results = run.run(inputs, true);
      backward(y, inputs[1]);
      EXPECT_LT(max_difference(results.at(0), y), 1e-6);
      EXPECT_LT(max_difference(results.at(1), x.grad()), 1e-5);
    }
  }
}

TEST(VisionLayers, RefuseWrongNumbers) {
  EXPECT_ERROR(ValueError, "[Conv2d] 3 channels to 8 in 2 groups; needed groups that divide both",
               nn::make<nn::Conv2d>(3, 8, 3, 1, 0, 1, 2));
  EXPECT_ERROR(ValueError,
               "[Conv2d] 3 channels to 8 by a window (0, 0) in 1 groups; needed positive numbers",
               nn::make<nn::Conv2d>(3, 8, 0));
  EXPECT_ERROR(ValueError, "[BatchNorm2d] eps is -1; needed at least 0",
               nn::make<nn::BatchNorm2d>(3, -1.0));
}

}  // namespace
}  // namespace tenon
