// The ready-made schedule for convolutional networks: which batch norms become one op with what follows,
// that results, gradients and running statistics stay, and what is left alone.
#include <gtest/gtest.h>

#include "nn/nn.h"
#include "schedule/schedules.h"
#include "schedule/training.h"
#include "schedule/verification.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"

namespace tenon {
namespace convolutional_test {

constexpr std::int64_t kChannels = 4;

int count(const Graph& graph, const std::string& op) {
  int found = 0;
  for (NodeId id : graph.order()) found += graph.node(id).op->name == op ? 1 : 0;
  return found;
}

/// What follows two batch norms, each behind a convolution.
struct Tail {
  const char* name;
  Tensor (*forward)(const Tensor& first, const Tensor& second, const Tensor& x);
  int relus, added;  // ops of each kind
};

std::ostream& operator<<(std::ostream& stream, const Tail& tail) { return stream << tail.name; }

struct Block : nn::Module {
  explicit Block(const Tail& how, bool affine = true, bool tracks = true)
      : conv1(add<nn::Conv2d>("conv1", kChannels, kChannels, 1)),
        conv2(add<nn::Conv2d>("conv2", kChannels, kChannels, 1)),
        bn1(add<nn::BatchNorm2d>("bn1", kChannels, 1e-5, 0.1, affine, tracks)),
        bn2(add<nn::BatchNorm2d>("bn2", kChannels, 1e-3, 0.3, affine, tracks)),
        tail(how) {}
  Tensor forward(const Tensor& x) const { return tail.forward(bn1(conv1(x)), bn2(conv2(x)), x); }
  nn::Child<nn::Conv2d> conv1, conv2;
  nn::Child<nn::BatchNorm2d> bn1, bn2;
  Tail tail;
};

const Tail kTails[] = {
    {"Relu", [](const Tensor& a, const Tensor& b, const Tensor&) { return relu(a) * relu(b); }, 2,
     0},
    {"ResidualLast",
     [](const Tensor& a, const Tensor& b, const Tensor& x) {
       return relu(relu(a) + x) + relu(b + x);
     },
     1, 1},
    {"ResidualFirst",
     [](const Tensor& a, const Tensor& b, const Tensor& x) { return relu(x + a) * relu(x + b); }, 0,
     2},
    {"TwoBranches", [](const Tensor& a, const Tensor& b, const Tensor&) { return relu(a + b); }, 0,
     1},
    {"Chain", [](const Tensor& a, const Tensor& b, const Tensor&) { return relu(b + relu(a)); }, 1,
     1},
};

nn::Child<Block> make_block(const Tail& tail) {
  const auto block = nn::make<Block>(tail);
  // Running statistics that a batch's differ from.
  for (const auto& norm : {block->bn1, block->bn2}) {
    const NoGradGuard no_grad;
    Tensor(norm->running_mean).copy_(randn({kChannels}));
    Tensor(norm->weight).copy_(randn({kChannels}));
    Tensor(norm->bias).copy_(randn({kChannels}));
  }
  return block;
}

class ConvolutionalSchedule : public ::testing::TestWithParam<Tail> {};

TEST_P(ConvolutionalSchedule, FusesWhatFollowsBatchNorms) {
  const Tail& tail = GetParam();
  const auto model = make_block(tail);
  Schedule sch = create_schedule(model, {{"x", randn({3, kChannels, 5, 5})}});
  const schedules::Summary summary = schedules::convolutional(sch);
  EXPECT_TRUE(summary.refused.empty()) << summary.refused[0];
  EXPECT_EQ(summary.rewritten, tail.relus + tail.added);
  EXPECT_EQ(count(sch.graph(), "batch_norm_relu"), tail.relus) << to_text(sch.graph());
  EXPECT_EQ(count(sch.graph(), "batch_norm_add_relu"), tail.added) << to_text(sch.graph());
  EXPECT_EQ(count(sch.graph(), "batch_norm"), 2 - tail.relus - tail.added);
  EXPECT_EQ(sch.graph().writes().size(), 4U) << "running statistics";
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
}

/// Loss, gradients and running statistics of a training step, and results of an evaluation after it.
std::vector<Tensor> train_and_evaluate(const Tail& tail, bool scheduled) {
  manual_seed(7);
  const auto model = make_block(tail);
  const Tensor x = randn({3, kChannels, 5, 5});
  Schedule sch = create_schedule(model, {{"x", x}});
  if (scheduled) schedules::convolutional(sch);
  TrainingStep step =
      build_training(sch, {.loss = [](std::span<const Tensor> y, std::span<const Tensor>) {
                       return mean(square(y[0]));
                     }});
  EXPECT_EQ(count(step.graph(), "batch_norm_relu_backward"), scheduled ? tail.relus : 0);
  EXPECT_EQ(count(step.graph(), "batch_norm_add_relu_backward"), scheduled ? tail.added : 0);
  const TrainingResult result = step.run({x});
  std::vector<Tensor> results = {result.loss};
  for (const auto& [name, gradient] : result.gradients) results.push_back(gradient);
  for (const auto& norm : {model->bn1, model->bn2}) {
    results.push_back(norm->running_mean.clone());
    results.push_back(norm->running_var.clone());
  }
  model->eval();
  Executor run = build(sch);
  results.push_back(run(x));
  return results;
}

TEST_P(ConvolutionalSchedule, TrainsAndEvaluatesAsThePlainModel) {
  const auto plain = train_and_evaluate(GetParam(), false);
  const auto fused = train_and_evaluate(GetParam(), true);
  ASSERT_EQ(plain.size(), fused.size());
  for (std::size_t i = 0; i < plain.size(); ++i) {
    EXPECT_LE(test::max_difference(plain[i], fused[i]), 1e-4) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Tails, ConvolutionalSchedule, ::testing::ValuesIn(kTails),
                         [](const auto& info) { return info.param.name; });

/// A bottleneck's shape: each convolution ends in what follows it.
struct Bottleneck : nn::Module {
  explicit Bottleneck(bool biased = false)
      : first(conv(1, biased)),
        second(register_module("second", conv(3, biased))),
        side(register_module("side", conv(1, biased))),
        bn1(add<nn::BatchNorm2d>("bn1", kChannels)),
        bn2(add<nn::BatchNorm2d>("bn2", kChannels)),
        bn3(add<nn::BatchNorm2d>("bn3", kChannels)) {
    register_module("first", first);
  }
  static nn::Child<nn::Conv2d> conv(std::int64_t kernel, bool biased) {
    return nn::make<nn::Conv2d>(kChannels, kChannels, kernel, 1, kernel / 2, 1, 1, biased);
  }
  Tensor forward(const Tensor& x) const {
    return relu(bn2(second(relu(bn1(first(x))))) + bn3(side(x)));
  }
  nn::Child<nn::Conv2d> first, second, side;
  nn::Child<nn::BatchNorm2d> bn1, bn2, bn3;
};

TEST(ConvolutionalSchedule, InEvaluationConvolutionsDoWhatFollowsThem) {
  manual_seed(3);
  const Tensor x = randn({2, kChannels, 6, 6});
  for (const bool biased : {false, true}) {
    const auto model = nn::make<Bottleneck>(biased);
    model->eval();
    Schedule sch = create_schedule(model, {{"x", x}});
    const schedules::Summary summary = schedules::convolutional(sch);
    EXPECT_TRUE(summary.refused.empty()) << summary.refused[0];
    EXPECT_EQ(count(sch.graph(), "conv2d_relu"), 2) << to_text(sch.graph());
    EXPECT_EQ(count(sch.graph(), "conv2d"), 1);
    EXPECT_EQ(count(sch.graph(), "batch_norm"), 0);
    EXPECT_EQ(count(sch.graph(), "relu"), 0);
    const VerifyReport report = verify(sch);
    EXPECT_TRUE(report.ok()) << report.to_string();
    Executor run = build(sch, {.log = nullptr});
    EXPECT_LE(test::max_difference(run(x), model(x)), 1e-5);
    EXPECT_THROW(
        build_training(sch, {.loss = [](std::span<const Tensor> y,
                                        std::span<const Tensor>) { return mean(square(y[0])); }}),
        StaleProgram);
  }
}

TEST(ConvolutionalSchedule, LeavesNearMissesAlone) {
  const Tail misses[] = {
      {"used elsewhere",
       [](const Tensor& a, const Tensor& b, const Tensor&) { return relu(a) + a + relu(b) * b; }, 0,
       0},
      {"another function",
       [](const Tensor& a, const Tensor& b, const Tensor&) { return sigmoid(a) + gelu(b); }, 0, 0},
      {"a residual of another shape",
       [](const Tensor& a, const Tensor& b, const Tensor& x) {
         return relu(a + x.narrow(2, 0, 1)) + sigmoid(relu(b * x));
       },
       0, 0},
  };
  for (const Tail& miss : misses) {
    SCOPED_TRACE(miss.name);
    Schedule sch = create_schedule(make_block(miss), {{"x", randn({3, kChannels, 5, 5})}});
    EXPECT_THROW(schedules::convolutional(sch), ScheduleError);
    EXPECT_EQ(count(sch.graph(), "batch_norm"), 2);
    EXPECT_EQ(count(sch.graph(), "batch_norm_relu") + count(sch.graph(), "batch_norm_add_relu"), 0);
  }
}

}  // namespace convolutional_test
}  // namespace tenon
