// Arguments at or beyond the edge of what means something: each is answered with an Error that names
// it, none ends the process, divides by zero or overflows. Run under UBSan as well.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "nn/clip_grad.h"
#include "nn/init.h"
#include "nn/lr_schedule.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/parallel.h"
#include "tests/support/expect_error.h"

namespace tenon::test {
namespace degenerate_arguments_test {

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Case {
  const char* what;
  std::function<void()> call;
};

/// Each call throws an Error of ours that is no internal one.
void expect_refused(const std::vector<Case>& cases) {
  for (const Case& test : cases) {
    try {
      test.call();
      ADD_FAILURE() << test.what << ": nothing was thrown";
    } catch (const InternalError& error) {
      ADD_FAILURE() << test.what << ": " << error.what();
    } catch (const Error& error) {
      EXPECT_GT(std::string(error.what()).size(), 10U) << test.what;
    } catch (const std::exception& error) {
      ADD_FAILURE() << test.what << ": not an Error of Tenon: " << error.what();
    }
  }
}

TEST(LearningRates, SettingsThatMeanNothingAreRefused) {
  EXPECT_ERROR(ValueError, "[StepDecay] step_size is 0; needed at least 1",
               nn::StepDecay{.step_size = 0}(3));
  EXPECT_ERROR(ValueError, "[StepDecay] gamma is nan; needed a finite number, at least 0",
               nn::StepDecay{.gamma = kNan}(3));
  EXPECT_ERROR(ValueError, "[WarmupCosine] total_steps is 0; needed at least 1",
               nn::WarmupCosine{.total_steps = 0}(0));
  EXPECT_ERROR(ValueError, "[WarmupCosine] the step is -1; needed at least 0",
               nn::WarmupCosine{}(-1));
  for (const double bad : {kNan, kInf, -kInf, -1.0}) {
    expect_refused({{"StepDecay's lr", [&] { nn::StepDecay{.lr = bad}(0); }},
                    {"StepDecay's gamma", [&] { nn::StepDecay{.gamma = bad}(0); }},
                    {"WarmupCosine's lr", [&] { nn::WarmupCosine{.lr = bad}(0); }},
                    {"WarmupCosine's min_lr", [&] { nn::WarmupCosine{.min_lr = bad}(0); }}});
  }
  for (const std::int64_t bad : {std::int64_t{-1}, kMin}) {
    expect_refused({{"StepDecay's step_size", [&] { nn::StepDecay{.step_size = bad}(0); }},
                    {"StepDecay's step", [&] { nn::StepDecay{}(bad); }},
                    {"warmup_steps", [&] { nn::WarmupCosine{.warmup_steps = bad}(0); }},
                    {"total_steps", [&] { nn::WarmupCosine{.total_steps = bad}(0); }},
                    {"WarmupCosine's step", [&] { nn::WarmupCosine{}(bad); }}});
  }
}

TEST(LearningRates, TheEdgesOfWhatIsAllowedAreFinite) {
  EXPECT_EQ((nn::StepDecay{.lr = 0, .gamma = 0}(kMax)), 0);
  EXPECT_EQ((nn::StepDecay{.lr = 0.5, .step_size = kMax, .gamma = 0}(0)), 0.5);
  EXPECT_TRUE(std::isfinite((nn::WarmupCosine{.warmup_steps = kMax, .total_steps = 1}(kMax))));
  EXPECT_TRUE(std::isfinite((nn::WarmupCosine{.warmup_steps = kMax}(kMax - 1))));
  EXPECT_TRUE(std::isfinite((nn::WarmupCosine{.total_steps = kMax}(kMax))));
  EXPECT_EQ((nn::WarmupCosine{.lr = 1, .warmup_steps = 10, .total_steps = 5}(10)), 1);
}

TEST(Losses, MseRefusesShapesThatDiffer) {
  EXPECT_ERROR(
      ShapeError,
      "[mse_loss] input (4, 1) and target (4,); needed equal shapes: reshape one of them, or "
      "expand() it where broadcasting is meant",
      mse_loss(zeros({4, 1}), zeros({4})));
  const std::pair<Shape, Shape> pairs[] = {{{4}, {4, 1}}, {{4}, {}},        {{2, 3}, {3}},
                                           {{1}, {4}},    {{2, 3}, {2, 1}}, {{2, 3}, {3, 2}}};
  for (const auto& [input, target] : pairs) {
    for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
      error_text<ShapeError>([&] { mse_loss(zeros(input), zeros(target), reduction); });
    }
    error_text<ShapeError>([&] { nn::make<nn::MSELoss>()(zeros(input), zeros(target)); });
  }
  EXPECT_EQ(mse_loss(ones({4, 1}), zeros({4, 1})).item(), 1);
}

/// Under the tracer the sizes are symbols.
TEST(Losses, MseRefusesShapesThatDifferInATrainingProgram) {
  const auto model = nn::make<nn::Linear>(3, 1);
  const auto loss = [](std::span<const Tensor> outputs, std::span<const Tensor> targets) {
    return mse_loss(outputs[0], targets[0]);
  };
  const auto build = [&](const Shape& target) {
    build_training(create_schedule(model, {{"input", randn({5, 3})}}),
                   {.loss = loss,
                    .targets = {{"y", randn(target)}},
                    .optimizer = std::make_shared<nn::SGD>(model->named_parameters(),
                                                           nn::SgdOptions{.lr = 0.1})});
  };
  error_text<ShapeError>([&] { build({5}); });
  EXPECT_NO_THROW(build({5, 1}));
}

TEST(Losses, CrossEntropyRefusesShapesThatDiffer) {
  const auto classes = [](const Shape& shape) { return zeros(shape, {DType::int64}); };
  const std::pair<Shape, Shape> pairs[] = {{{4, 3}, {4, 1}}, {{4, 3}, {3}},       {{4, 3}, {}},
                                           {{3}, {1}},       {{2, 3, 5}, {2, 3}}, {{}, {}}};
  for (const auto& [input, target] : pairs) {
    error_text<ShapeError>([&] { cross_entropy(zeros(input), classes(target)); });
  }
  expect_refused({{"no class",
                   [&] {
                     cross_entropy(zeros({2, 0}), classes({2}));
                   }},
                  {"smoothing", [&] {
                     cross_entropy(zeros({2, 3}), classes({2}), {.label_smoothing = kNan});
                   }}});
}

TEST(DegenerateArguments, OfShapesAndPiecesAreRefused) {
  const Tensor x = zeros({6, 4});
  std::vector<Case> cases = {{"chunk 0", [&] { chunk(x, 0); }},
                             {"split 0", [&] { split(x, 0); }},
                             {"split sizes",
                              [&] {
                                split(x, std::vector<std::int64_t>{kMax, kMax});
                              }},
                             {"view of no element",
                              [&] {
                                zeros({0, 4}).view({0, -1});
                              }},
                             {"view that overflows",
                              [&] {
                                x.view({kMax, kMax});
                              }},
                             {"empty that overflows",
                              [&] {
                                empty({kMax, 2});
                              }},
                             {"negative size", [&] { zeros({-1}); }},
                             {"arange", [&] { arange(-1); }},
                             {"arange of the smallest", [&] { arange(kMin); }},
                             {"no tensors", [&] { cat({}); }},
                             {"no tensors to stack", [&] { stack({}); }},
                             {"division of sizes", [&] { Dim(3) / Dim(0); }},
                             {"remainder of sizes", [&] { Dim(3) % Dim(0); }},
                             {"the smallest size by -1", [&] { Dim(kMin) / Dim(-1); }},
                             {"a size that overflows", [&] { Dim(kMax) + Dim(1); }},
                             {"threads", [&] { set_num_threads(0); }},
                             {"count", [&] {
                                tensor({1}, {kMax, kMax});
                              }}};
  for (const std::int64_t bad : {std::int64_t{-1}, kMin}) {
    cases.push_back({"chunks", [&x, bad] { chunk(x, bad); }});
    cases.push_back({"split", [&x, bad] { split(x, bad); }});
    cases.push_back({"narrow's length", [&x, bad] { narrow(x, 0, 0, bad); }});
    cases.push_back({"expand", [&x, bad] { x.expand({bad, 4}).view({-2, 4}); }});
  }
  for (const std::int64_t bad : {std::int64_t{7}, kMax, kMin, std::int64_t{-7}}) {
    cases.push_back({"axis", [&x, bad] { softmax(x, bad); }});
    cases.push_back({"select's index", [&x, bad] { select(x, 0, bad); }});
    cases.push_back({"select's axis", [&x, bad] { select(x, bad, 0); }});
    cases.push_back({"narrow's start", [&x, bad] { narrow(x, 0, bad, 1); }});
    cases.push_back({"size's axis", [&x, bad] { x.size(bad); }});
    cases.push_back({"unsqueeze", [&x, bad] { unsqueeze(x, bad); }});
    cases.push_back({"transpose", [&x, bad] { transpose(x, 0, bad); }});
    cases.push_back({"permute", [&x, bad] { permute(x, {0, bad}); }});
    cases.push_back({"sum", [&x, bad] { sum(x, {bad}); }});
    cases.push_back({"argmax", [&x, bad] { argmax(x, bad); }});
    cases.push_back({"cumsum", [&x, bad] { cumsum(x, bad); }});
  }
  expect_refused(cases);
}

TEST(DegenerateArguments, OfWindowsAreRefused) {
  const Tensor image = zeros({1, 4, 6, 6});
  const Tensor filter = zeros({2, 4, 3, 3});
  std::vector<Case> cases = {{"padding that overflows",
                              [&] {
                                conv2d(image, filter, {}, {1, 1}, {kMax, kMax});
                              }},
                             {"dilation that overflows",
                              [&] {
                                conv2d(image, filter, {}, {1, 1}, {0, 0}, {kMax, kMax});
                              }},
                             {"groups that overflow",
                              [&] {
                                conv2d(image, filter, {}, {1, 1}, {0, 0}, {1, 1}, kMax);
                              }},
                             {"groups that do not divide",
                              [&] {
                                conv2d(image, filter, {}, {1, 1}, {0, 0}, {1, 1}, 3);
                              }},
                             {"a window beyond the image",
                              [&] {
                                max_pool2d(image, {7, 7}, {1, 1});
                              }},
                             {"pool padding that overflows",
                              [&] {
                                max_pool2d(image, {2, 2}, {1, 1}, {kMax / 2 + 2, 0});
                              }},
                             {"pool kernel that overflows",
                              [&] {
                                avg_pool2d(image, {kMax, kMax}, {1, 1});
                              }},
                             {"Conv2d's groups", [&] { nn::Conv2d(4, 4, 3, 1, 0, 1, 3); }}};
  for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{-1}, kMin}) {
    const Size2 both = {bad, bad};
    cases.push_back({"stride", [&, both] { conv2d(image, filter, {}, both); }});
    cases.push_back({"dilation", [&, both] { conv2d(image, filter, {}, {1, 1}, {0, 0}, both); }});
    cases.push_back({"groups", [&, bad] {
                       conv2d(image, filter, {}, {1, 1}, {0, 0}, {1, 1}, bad);
                     }});
    cases.push_back({"max_pool2d's kernel", [&, both] { max_pool2d(image, both, {1, 1}); }});
    cases.push_back({"max_pool2d's stride", [&, both] { max_pool2d(image, {2, 2}, both); }});
    cases.push_back({"avg_pool2d's kernel", [&, both] { avg_pool2d(image, both, {1, 1}); }});
    cases.push_back({"avg_pool2d's stride", [&, both] { avg_pool2d(image, {2, 2}, both); }});
    cases.push_back({"MaxPool2d", [&, bad] { nn::make<nn::MaxPool2d>(bad)(image); }});
    cases.push_back({"AvgPool2d", [&, bad] { nn::make<nn::AvgPool2d>(2, bad)(image); }});
    cases.push_back({"Conv2d's kernel", [&, bad] { nn::Conv2d(4, 2, bad); }});
    cases.push_back({"Conv2d's groups", [&, bad] { nn::Conv2d(4, 2, 3, 1, 0, 1, bad); }});
    cases.push_back({"Conv2d's stride", [&, bad] { nn::make<nn::Conv2d>(4, 2, 3, bad)(image); }});
  }
  expect_refused(cases);
}

TEST(DegenerateArguments, OfOptimizersAndInitializersAreRefused) {
  const Tensor w = zeros({2, 3}).requires_grad_();
  const nn::Module::NamedTensors parameters = {{"w", w}};
  std::vector<Case> cases = {
      {"no parameters", [&] { nn::SGD(nn::Module::NamedTensors{}, nn::SgdOptions{}); }},
      {"beta of 1", [&] { nn::Adam(parameters, nn::AdamOptions{.beta1 = 1}); }},
      {"clip to 0", [&] { nn::clip_grad_norm_(parameters, 0); }},
      {"micro-batches", [&] {
         build_training(
             create_schedule(nn::make<nn::Linear>(3, 1), {{"input", randn({5, 3})}}),
             {.loss = [](auto outputs, auto) { return sum(outputs[0]); }, .micro_batches = 0});
       }}};
  for (const double bad : {kNan, kInf, -1.0}) {
    cases.push_back({"SGD's lr", [&, bad] { nn::SGD(parameters, nn::SgdOptions{.lr = bad}); }});
    cases.push_back(
        {"Adam's beta", [&, bad] { nn::Adam(parameters, nn::AdamOptions{.beta2 = bad}); }});
    cases.push_back(
        {"Adam's eps", [&, bad] { nn::Adam(parameters, nn::AdamOptions{.eps = bad}); }});
    cases.push_back({"set_lr", [&, bad] { nn::SGD(parameters, nn::SgdOptions{}).set_lr(bad); }});
    cases.push_back({"clip_grad_norm_", [&, bad] { nn::clip_grad_norm_(parameters, bad); }});
    cases.push_back({"dropout", [&, bad] { dropout(zeros({2}), bad, DropoutMode::train); }});
    cases.push_back({"Dropout", [&, bad] { nn::Dropout d(bad); }});
  }
  expect_refused(cases);
}

/// What is odd but has an answer, which must not depend on undefined behaviour.
TEST(DegenerateArguments, OthersHaveAnAnswer) {
  const Tensor x = arange(4, {DType::float32});
  for (const double correction : {kInf, kNan, 1e300, 4.0, 9.0}) {
    const Tensor leaf = (x + 0.0).requires_grad_();
    const Tensor result = var(leaf, {}, correction);
    EXPECT_NO_THROW(backward(sum(result))) << correction;
  }
  for (const std::int64_t diagonal : {kMin, kMax}) {
    EXPECT_EQ(tril(ones({2, 2}), diagonal).to_doubles(),
              std::vector<double>(4, diagonal > 0 ? 1 : 0));
    EXPECT_EQ(triu(ones({2, 2}), diagonal).to_doubles(),
              std::vector<double>(4, diagonal > 0 ? 0 : 1));
  }
  EXPECT_EQ(split(zeros({0, 2}), 0).size(), 1U);
  EXPECT_EQ(arange(0).numel(), Dim(0));
  const Tensor smallest = full({1}, kMin, {DType::int64});
  EXPECT_EQ(neg(smallest).item<std::int64_t>(), kMin) << "wraps around";
  EXPECT_EQ(abs(smallest).item<std::int64_t>(), kMin);
  EXPECT_EQ(square(smallest).item<std::int64_t>(), 0);
  EXPECT_EQ((smallest * smallest).item<std::int64_t>(), 0);
  EXPECT_EQ((smallest - kMax).item<std::int64_t>(), 1);
}

}  // namespace degenerate_arguments_test
}  // namespace tenon::test
