// Training from a schedule: the Program of a step against the eager step, plain and scheduled.
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "examples/attention_model.h"
#include "nn/adam.h"
#include "nn/sgd.h"
#include "schedule/training.h"
#include "tensor/device_backend.h"
#include "tensor/random.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

constexpr std::int64_t kHidden = 32;
constexpr std::int64_t kHeads = 4;
constexpr std::uint64_t kSeed = 20261122;

Tensor squared_error(std::span<const Tensor> outputs, std::span<const Tensor> targets) {
  return mse_loss(outputs[0], targets[0]);
}

/// Any model's parameters, from a seed.
void initialize(nn::Module& model, std::uint64_t seed) {
  Generator generator(seed);
  const NoGradGuard no_grad;
  for (auto& [name, tensor] : model.named_parameters()) {
    Tensor(tensor).copy_(randn(tensor.shape(), {}, &generator) * 0.2);
  }
}

void schedule_attention(Schedule sch) {
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
  Schedule proj = sch["proj"];
  proj["dense"].decompose();
  proj.trace({.flatten = true});
  proj.fuse(proj.find([](const Tensor& x, const Tensor& bias, const Tensor& residual,
                         const Tensor& weight, const Tensor& norm_bias) {
    return layer_norm(dropout(x + bias, 0.1) + residual, weight, norm_bias);
  }));
}

class Training : public ::testing::TestWithParam<DeviceType> {
 protected:
  void SetUp() override {
    if (!is_available(device())) GTEST_SKIP() << "no " << device().to_string() << " device";
    model = make_model();
    generator = Generator(kSeed + 1);
  }
  void TearDown() override { manual_seed(0); }
  Device device() const { return {GetParam(), 0}; }

  nn::Child<tutorial::Attention> make_model() const {
    auto made = nn::make<tutorial::Attention>(kHidden, kHeads);
    initialize(*made, kSeed);
    made->to(device());
    return made;
  }
  std::vector<Tensor> batch(std::int64_t size = 3, std::int64_t length = 9) {
    return {randn({size, length, kHidden}, {}, &generator).to(device()),
            randn({size, length, kHidden}, {}, &generator).to(device())};
  }
  Schedule make_schedule(const nn::Child<tutorial::Attention>& of) {
    return create_schedule(of, {{"hidden_states", batch()[0]}});
  }
  std::vector<ExampleInput> targets() { return {{"targets", batch()[0]}}; }

  nn::Child<tutorial::Attention> model = nn::make<tutorial::Attention>(kHidden, kHeads);
  Generator generator;
};

std::shared_ptr<nn::AdamW> adamw(nn::Module& model, double max_grad_norm = 0) {
  return std::make_shared<nn::AdamW>(model.named_parameters(),
                                     nn::AdamWOptions{.lr = 3e-3, .no_decay = {"*.bias", "*norm*"}},
                                     nn::OptimizerOptions{.max_grad_norm = max_grad_norm});
}

TEST_P(Training, EagerPlainAndScheduledStepsTakeTheSameCourseWithDropout) {
  auto eager_model = make_model();
  auto scheduled_model = make_model();
  auto eager = adamw(*eager_model, 1.0);
  auto plain = build_training(
      make_schedule(model),
      {.loss = squared_error, .targets = targets(), .optimizer = adamw(*model, 1.0)});
  Schedule sch = make_schedule(scheduled_model);
  schedule_attention(sch);
  auto scheduled = build_training(
      sch,
      {.loss = squared_error, .targets = targets(), .optimizer = adamw(*scheduled_model, 1.0)});
  for (std::uint32_t i = 0; i < 8; ++i) {
    const auto data = batch(2 + i % 3, 5 + i);  // one build serves every size
    const auto at_step = [&] {
      default_generator() = Generator(kSeed);
      default_generator().set_forward(i);
    };
    at_step();
    eager->zero_grad();
    const Tensor loss = mse_loss(eager_model(data[0]), data[1]);
    backward(loss);
    const double norm = eager->step().item();
    at_step();
    const TrainingResult by_plain = plain.run(data);
    at_step();
    const TrainingResult by_schedule = scheduled.run(data);
    EXPECT_NEAR(by_plain.loss.item(), loss.item(), 2e-5 * loss.item()) << i;
    EXPECT_NEAR(by_schedule.loss.item(), loss.item(), 2e-5 * loss.item()) << i;
    EXPECT_NEAR(by_plain.grad_norm.item(), norm, 1e-4 * norm) << i;
    EXPECT_NEAR(by_schedule.grad_norm.item(), norm, 1e-4 * norm) << i;
  }
  for (const auto& [name, tensor] : eager_model->named_parameters()) {
    // A bias of the keys shifts all scores of a row alike: its gradient is zero in truth, and Adam
    // makes steps of full length out of the rounding noise.
    if (name == "self_attn.k_proj.bias") continue;
    EXPECT_LT(max_difference(tensor, model->parameter(name)), 2e-4) << name;
    EXPECT_LT(max_difference(tensor, scheduled_model->parameter(name)), 2e-4) << name;
  }
}

TEST_P(Training, GradientsComeBackUnderTheOriginalNames) {
  Schedule sch = make_schedule(model);
  schedule_attention(sch);
  auto step = build_training(sch, {.loss = squared_error, .targets = targets()});
  const auto data = batch();
  manual_seed(kSeed);
  const TrainingResult result = step.run(data);
  manual_seed(kSeed);
  backward(mse_loss(model(data[0]), data[1]));
  ASSERT_EQ(result.gradients.size(), model->named_parameters().size());
  for (const auto& [name, gradient] : result.gradients) {
    const Tensor expected = model->parameter(name).grad();
    EXPECT_LT(max_difference(gradient, expected), 1e-5) << name;
  }
}

TEST_P(Training, MicroBatchesAverageTheirGradientsIntoOneUpdate) {
  auto eager_model = make_model();
  auto eager = adamw(*eager_model, 0.5);
  auto step = build_training(make_schedule(model), {.loss = squared_error,
                                                    .targets = targets(),
                                                    .optimizer = adamw(*model, 0.5),
                                                    .micro_batches = 3});
  manual_seed(kSeed);
  std::vector<std::vector<Tensor>> batches;
  for (int i = 0; i < 6; ++i) batches.push_back(batch());
  std::vector<double> losses;
  for (const auto& data : batches) {
    const TrainingResult result = step.run(data);
    losses.push_back(result.loss.item());
    // A batch that is refused does not count.
    EXPECT_THROW(step.run({data[0], data[1].narrow(0, 0, 1)}), Error);
    EXPECT_EQ(result.updated, losses.size() % 3 == 0);
  }
  manual_seed(kSeed);
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const Tensor loss = mse_loss(eager_model(batches[i][0]), batches[i][1]);
    EXPECT_NEAR(losses[i], loss.item(), 2e-5 * loss.item()) << i;
    backward(loss * (1.0 / 3));
    if (i % 3 != 2) continue;
    eager->step();
    eager->zero_grad();
  }
  for (const auto& [name, tensor] : eager_model->named_parameters()) {
    if (name == "self_attn.k_proj.bias") continue;  // noise, as above
    EXPECT_LT(max_difference(tensor, model->parameter(name)), 1e-4) << name;
  }
}

TEST_P(Training, TheScheduledStepNeedsLessMemory) {
  auto scheduled_model = make_model();
  Schedule sch = make_schedule(scheduled_model);
  schedule_attention(sch);
  const auto data = batch(4, 96);
  auto plain =
      build_training(make_schedule(model),
                     {.loss = squared_error, .targets = targets(), .optimizer = adamw(*model)});
  auto scheduled = build_training(
      sch, {.loss = squared_error, .targets = targets(), .optimizer = adamw(*scheduled_model)});
  EXPECT_LT(scheduled.program(data).arena_bytes(), plain.program(data).arena_bytes());
  EXPECT_LT(scheduled.program(data).instructions().size(),
            plain.program(data).instructions().size());
}

TEST_P(Training, AnUpdateWritesParametersWithoutCopies) {
  auto step =
      build_training(make_schedule(model),
                     {.loss = squared_error, .targets = targets(), .optimizer = adamw(*model)});
  const auto data = batch();
  std::size_t updates = 0;
  for (const InstructionInfo& info : step.program(data).instructions()) {
    updates += info.name.find("adam_step") != std::string::npos;
  }
  EXPECT_EQ(updates, 1U);
  const std::string text = step.program(data).to_string();
  const std::size_t at = text.find("adam_step");
  const std::string line = text.substr(at, text.find('\n', at) - at);
  const std::string results = line.substr(line.find("->"));
  EXPECT_EQ(results.find("arena"), std::string::npos) << text;
  EXPECT_NE(results.find("state"), std::string::npos) << text;
}

TEST_P(Training, BfloatParametersTrainThroughMasterWeights) {
  model->to(DType::bfloat16);
  auto step =
      build_training(create_schedule(model, {{"hidden_states", batch()[0].to(DType::bfloat16)}}),
                     {.loss = squared_error,
                      .targets = {{"targets", batch()[0].to(DType::bfloat16)}},
                      .optimizer = adamw(*model)});
  std::vector<Tensor> data = batch();
  for (Tensor& tensor : data) tensor = tensor.to(DType::bfloat16);
  const double first = step.run(data).loss.item();
  double last = first;
  for (int i = 0; i < 40; ++i) last = step.run(data).loss.item();
  EXPECT_LT(last, 0.8 * first);
}

TEST_P(Training, FrozenParametersStay) {
  model->submodule("self_attn.q_proj").requires_grad_(false);
  const Tensor frozen = model->parameter("self_attn.q_proj.weight").clone();
  nn::Module::NamedTensors trained;
  for (const auto& entry : model->named_parameters()) {
    if (entry.second.requires_grad()) trained.push_back(entry);
  }
  auto step =
      build_training(make_schedule(model),
                     {.loss = squared_error,
                      .targets = targets(),
                      .optimizer = std::make_shared<nn::SGD>(trained, nn::SgdOptions{.lr = 0.1})});
  step.run(batch());
  EXPECT_EQ(max_difference(frozen, model->parameter("self_attn.q_proj.weight")), 0);
}

TEST_P(Training, RefusesWhatCannotBeTrained) {
  const auto sch = make_schedule(model);
  EXPECT_ERROR(ScheduleError,
               "build_training: the loss has shape (s0, s1, 32); needed one element, reduce it",
               build_training(sch, {}));
  EXPECT_ERROR(ScheduleError, "build_training: micro_batches is 0; needed at least 1",
               build_training(sch, {.loss = squared_error,
                                    .targets = targets(),
                                    .optimizer = adamw(*model),
                                    .micro_batches = 0}));
  auto other = make_model();
  EXPECT_ERROR(
      ScheduleError,
      "build_training: the optimizer's parameter 'self_attn.q_proj.weight' is not one of the "
      "schedule's model",
      build_training(sch,
                     {.loss = squared_error, .targets = targets(), .optimizer = adamw(*other)}));
  EXPECT_ERROR(
      ScheduleError, "build_training: the loss depends on no parameter that requires a gradient",
      build_training(sch, {.loss = [](auto, auto y) { return mean(y[0]); }, .targets = targets()}));
}

TEST_P(Training, AnUnusedParameterUnderClippingIsNamed) {
  struct Unused : nn::Module {
    Unused()
        : used(add<nn::Linear>("used", kHidden, 4)),
          unused(add<nn::Linear>("unused", kHidden, 4)) {}
    Tensor forward(const Tensor& x) const { return used(x); }
    nn::Child<nn::Linear> used, unused;
  };
  auto made = nn::make<Unused>();
  made->to(device());
  const Schedule sch = create_schedule(made, {{"x", batch()[0]}});
  const LossFunction loss = [](auto outputs, auto) { return mean(square(outputs[0])); };
  const std::string text = test::error_text<ValueError>(
      [&] { build_training(sch, {.loss = loss, .optimizer = adamw(*made, 1.0)}); });
  EXPECT_NE(text.find("unused.weight"), std::string::npos) << text;
  auto step = build_training(sch, {.loss = loss, .optimizer = adamw(*made)});
  const Tensor before = made->parameter("unused.weight").clone();
  const Tensor x = batch()[0];
  step.run({x});
  EXPECT_EQ(max_difference(before, made->parameter("unused.weight")), 0);
}

INSTANTIATE_TEST_SUITE_P(Devices, Training, ::testing::Values(DeviceType::cpu, DeviceType::cuda),
                         [](const auto& device) {
                           return device.param == DeviceType::cpu ? "cpu" : "cuda";
                         });

}  // namespace
}  // namespace tenon
