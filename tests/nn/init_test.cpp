// Initializers by their moments and bounds, and learning-rate schedules by their values.
#include "nn/init.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>

#include "nn/lr_schedule.h"
#include "tensor/error.h"
#include "tests/support/expect_error.h"

namespace tenon::nn {
namespace {

struct Moments {
  double mean = 0, deviation = 0, lowest = HUGE_VAL, highest = -HUGE_VAL;
};

Moments moments_of(const Tensor& tensor) {
  Moments m;
  const auto values = tensor.to_doubles();
  const auto n = static_cast<double>(values.size());
  for (const double v : values) {
    m.mean += v / n;
    m.lowest = std::min(m.lowest, v);
    m.highest = std::max(m.highest, v);
  }
  for (const double v : values) m.deviation += (v - m.mean) * (v - m.mean) / n;
  m.deviation = std::sqrt(m.deviation);
  return m;
}

// A weight (64, 32, 5): fan_in 160, fan_out 320.
struct InitCase {
  const char* name;
  std::function<void(const Tensor&, Generator*)> fill;
  double mean;
  double deviation;
  double bound;  // of |value|; 0: none
};

const InitCase kCases[] = {
    {"uniform", [](auto& t, auto* g) { init::uniform_(t, 1, 3, g); }, 2, 2 / std::sqrt(12), 3},
    {"normal", [](auto& t, auto* g) { init::normal_(t, -1, 0.02, g); }, -1, 0.02, 0},
    {"trunc_normal", [](auto& t, auto* g) { init::trunc_normal_(t, 0, 1, -2, 2, g); }, 0,
     0.87962566103423978, 2},
    {"trunc_normal_tail", [](auto& t, auto* g) { init::trunc_normal_(t, 0, 0.5, 1, 4, g); },
     1.1866077664113415, 0.169025959850242, 4},
    {"constant", [](auto& t, auto*) { init::constant_(t, 0.5); }, 0.5, 0, 0.5},
    {"ones", [](auto& t, auto*) { init::ones_(t); }, 1, 0, 1},
    {"zeros", [](auto& t, auto*) { init::zeros_(t); }, 0, 0, 0},
    {"xavier_uniform", [](auto& t, auto* g) { init::xavier_uniform_(t, 2, g); }, 0,
     2 * std::sqrt(2.0 / 480), 2 * std::sqrt(6.0 / 480)},
    {"xavier_normal", [](auto& t, auto* g) { init::xavier_normal_(t, 1, g); }, 0,
     std::sqrt(2.0 / 480), 0},
    {"kaiming_uniform",
     [](auto& t, auto* g) {
       init::kaiming_uniform_(t, {.negative_slope = std::sqrt(5.0), .generator = g});
     },
     0, 1 / std::sqrt(3 * 160.0), 1 / std::sqrt(160.0)},
    {"kaiming_normal",
     [](auto& t, auto* g) {
       init::kaiming_normal_(t, {.mode = init::FanMode::fan_out,
                                 .nonlinearity = init::Nonlinearity::relu,
                                 .generator = g});
     },
     0, std::sqrt(2.0 / 320), 0},
};

TEST(Init, HasTheFormulasMoments) {
  for (const InitCase& one : kCases) {
    SCOPED_TRACE(one.name);
    Generator generator(11);
    const Tensor weight = full({64, 32, 5}, NAN).requires_grad_();
    one.fill(weight, &generator);
    const Moments m = moments_of(weight);
    // 10240 numbers: five standard errors.
    EXPECT_NEAR(m.mean, one.mean, 0.05 * one.deviation + 1e-7);
    EXPECT_NEAR(m.deviation, one.deviation, 0.05 * one.deviation + 1e-7);
    if (one.bound > 0) {
      EXPECT_LE(std::max(-m.lowest, m.highest), one.bound * (1 + 1e-6));
    }
  }
}

TEST(Init, KnowsGainsAndFans) {
  using enum init::Nonlinearity;
  EXPECT_EQ(init::calculate_gain(linear), 1);
  EXPECT_EQ(init::calculate_gain(sigmoid), 1);
  EXPECT_EQ(init::calculate_gain(tanh), 5.0 / 3);
  EXPECT_EQ(init::calculate_gain(relu), std::numbers::sqrt2);
  EXPECT_NEAR(init::calculate_gain(leaky_relu), std::sqrt(2 / 1.0001), 1e-15);
  EXPECT_EQ(init::calculate_gain(selu), 0.75);
  const init::Fans fans = init::calculate_fans(zeros({6, 4, 3, 3}));
  EXPECT_EQ(fans.in, 36);
  EXPECT_EQ(fans.out, 54);
  EXPECT_ERROR(ShapeError,
               "[calculate_fans] a weight (3,); needed two axes or more, (out, in, kernel…)",
               init::xavier_uniform_(zeros({3})));
  EXPECT_ERROR(ValueError, "[trunc_normal_] std 1 from 2 to 1; needed std > 0 and low < high",
               init::trunc_normal_(zeros({3}), 0, 1, 2, 1));
}

TEST(LearningRate, WarmupCosine) {
  const WarmupCosine rate{.lr = 0.8, .warmup_steps = 4, .total_steps = 12, .min_lr = 0.2};
  EXPECT_DOUBLE_EQ(rate(0), 0.2);
  EXPECT_DOUBLE_EQ(rate(3), 0.8);
  EXPECT_DOUBLE_EQ(rate(4), 0.8);
  EXPECT_DOUBLE_EQ(rate(8), 0.5);
  EXPECT_DOUBLE_EQ(rate(12), 0.2);
  EXPECT_DOUBLE_EQ(rate(1000), 0.2);
  EXPECT_DOUBLE_EQ((WarmupCosine{.lr = 1})(0), 1) << "without warmup it starts at the top";
}

TEST(LearningRate, StepDecay) {
  const StepDecay rate{.lr = 0.5, .step_size = 30, .gamma = 0.1};
  EXPECT_DOUBLE_EQ(rate(0), 0.5);
  EXPECT_DOUBLE_EQ(rate(29), 0.5);
  EXPECT_DOUBLE_EQ(rate(30), 0.05);
  EXPECT_DOUBLE_EQ(rate(60), 0.005);
}

}  // namespace
}  // namespace tenon::nn
