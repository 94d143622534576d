// 100 AdamW steps of a 2-layer GPT against the losses that PyTorch computed from the same weights and
// batches (tools/record_gpt_losses.py): eagerly, and as training Programs, plain and scheduled.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <optional>
#include <set>

#include "autograd/autograd.h"
#include "examples/gpt_model.h"
#include "examples/gpt_schedule.h"
#include "nn/checkpoint.h"
#include "schedule/training.h"
#include "tensor/device_backend.h"
#include "tensor/random.h"
#include "tests/support/test_data.h"

namespace tenon {
namespace {

struct TrainingRun {
  nn::Child<gpt::Gpt> model;
  std::shared_ptr<nn::AdamW> optimizer;
};

/// One step: the loss before the update and the gradient norm before clipping.
using Step = std::function<std::pair<double, double>(const Tensor& inputs, const Tensor& targets)>;

class GptLosses : public ::testing::TestWithParam<DeviceType> {
 protected:
  void SetUp() override {
    device_ = {GetParam(), 0};
    if (!is_available(device_)) GTEST_SKIP() << "no such device";
    recorded_ = nn::load_checkpoint(test::test_data("gpt/losses.json"));
  }

  TrainingRun start() const {
    const auto integer = [&](const char* key) { return recorded_.config.integer(key).value(); };
    TrainingRun run;
    run.model = nn::make<gpt::Gpt>(gpt::GptOptions{integer("vocabulary"), integer("context"),
                                                   integer("layers"), integer("hidden"),
                                                   integer("heads"), 0});
    nn::StateDict weights;
    for (const auto& [name, tensor] : recorded_.tensors) {
      if (name.starts_with("model.")) weights.add(name.substr(6), tensor);
    }
    run.model->load_state_dict(weights);
    run.model->to(device_);
    run.model->requires_grad_();
    run.optimizer =
        std::make_shared<nn::AdamW>(run.model->named_parameters(),
                                    nn::AdamWOptions{.beta2 = 0.95,
                                                     .weight_decay = number("weight_decay"),
                                                     .no_decay = {"*.bias", "*norm*"}},
                                    nn::OptimizerOptions{.max_grad_norm = number("max_grad_norm")});
    return run;
  }

  double number(const char* key) const { return recorded_.config.number(key).value(); }

  Tensor batch(const char* name, std::int64_t step) const {
    const Tensor all = recorded_.tensors.at(name);
    return all.narrow(0, step % all.layout().sizes[0], 1).squeeze(0).contiguous().to(device_);
  }

  /// Makes all recorded steps and compares their losses.
  void expect_recorded_losses(const TrainingRun& run, const Step& step) const {
    const auto losses = recorded_.tensors.at("losses").to_doubles();
    const auto norms = recorded_.tensors.at("grad_norms").to_doubles();
    const nn::WarmupCosine rate{.lr = number("lr"),
                                .warmup_steps = recorded_.config.integer("warmup_steps").value(),
                                .total_steps = static_cast<std::int64_t>(losses.size()),
                                .min_lr = number("min_lr")};
    for (std::size_t i = 0; i < losses.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i);
      run.optimizer->set_lr(rate(at));
      const auto [loss, norm] = step(batch("inputs", at), batch("targets", at));
      ASSERT_NEAR(loss, losses[i], 1e-4 * losses[i]) << "step " << i;
      ASSERT_NEAR(norm, norms[i], 1e-3 * norms[i]) << "step " << i;
    }
  }

  void expect_recorded_losses_of_program(bool scheduled) const {
    const TrainingRun run = start();
    Schedule sch = create_schedule(run.model, {{"tokens", batch("inputs", 0)}});
    if (scheduled) gpt::schedule_gpt(sch, run.model->options);
    TrainingStep program = build_training(
        sch, {.loss =
                  [](std::span<const Tensor> outputs, std::span<const Tensor> targets) {
                    return gpt::next_token_loss(outputs[0], targets[0]);
                  },
              .targets = {{"targets", batch("targets", 0)}},
              .optimizer = run.optimizer});
    expect_recorded_losses(run, [&](const Tensor& inputs, const Tensor& targets) {
      const TrainingResult result = program.run({inputs, targets});
      return std::pair(result.loss.item(), result.grad_norm.item());
    });
  }

  Device device_;
  nn::Checkpoint recorded_;
};

TEST_P(GptLosses, AgreeWithPyTorchEagerly) {
  const TrainingRun run = start();
  expect_recorded_losses(run, [&](const Tensor& inputs, const Tensor& targets) {
    const Tensor loss = gpt::next_token_loss(run.model(inputs), targets);
    run.optimizer->zero_grad();
    backward(loss);
    const double norm = run.optimizer->step().item();
    return std::pair(loss.item(), norm);
  });
}

TEST_P(GptLosses, AgreeWithPyTorchAsAPlainProgram) { expect_recorded_losses_of_program(false); }

TEST_P(GptLosses, AgreeWithPyTorchAsAScheduledProgram) { expect_recorded_losses_of_program(true); }

/// A training Program of a model with dropout from a seed of its own.
struct DropoutRun {
  DropoutRun(Device device, bool scheduled, const Tensor& inputs, const Tensor& targets) {
    model = nn::make<gpt::Gpt>(gpt::GptOptions{65, 64, 2, 64, 4, 0.1});
    model->initialize(20261122);
    model->to(device);
    Schedule sch = create_schedule(model, {{"tokens", inputs}});
    if (scheduled) gpt::schedule_gpt(sch, model->options);
    program.emplace(build_training(
        sch,
        {.loss = [](auto outputs, auto next) { return gpt::next_token_loss(outputs[0], next[0]); },
         .targets = {{"targets", targets}},
         .optimizer = std::make_shared<nn::AdamW>(model->named_parameters(),
                                                  nn::AdamWOptions{.lr = 1e-3})}));
  }
  /// Every mask that a step draws, and again in backward: what it is a function of beside the seed.
  std::multiset<std::string> masks() const {
    std::multiset<std::string> result;
    const Graph& graph = program->graph();
    for (NodeId id : graph.order()) {
      const Node& node = graph.node(id);
      if (!draws_mask(node)) continue;
      const std::size_t p = std::min(node.attrs.find("p"), node.attrs.find("dropout_p"));
      result.insert(to_string(node.attrs.value(node.attrs.find("site"))) + " " +
                    to_string(node.attrs.value(p)));
    }
    return result;
  }
  nn::Child<gpt::Gpt> model = nn::make<gpt::Gpt>(gpt::GptOptions{2, 1, 0, 1, 1, 0});
  std::optional<TrainingStep> program;
};

TEST_P(GptLosses, FiftyStepsWithDropoutAreThePlainOnesAndNeedLessMemory) {
  Generator generator(5);
  std::vector<Tensor> data;
  for (int i = 0; i < 4; ++i) {
    data.push_back(cast(uniform({8, 64}, 0, 65, {}, &generator), DType::int64).to(device_));
  }
  DropoutRun plain(device_, false, data[0], data[1]);
  DropoutRun scheduled(device_, true, data[0], data[1]);
  EXPECT_EQ(plain.masks(), scheduled.masks());
  EXPECT_EQ(plain.masks().size(), 2U * (1 + 2 * 3));  // forward and backward
  for (std::uint32_t i = 0; i < 50; ++i) {
    const Tensor& inputs = data[i % 4];
    const Tensor& targets = data[(i + 1) % 4];
    Generator at_step(77);
    at_step.set_forward(i);
    default_generator() = at_step;
    const double expected = plain.program->run({inputs, targets}).loss.item();
    default_generator() = at_step;
    const double given = scheduled.program->run({inputs, targets}).loss.item();
    ASSERT_NEAR(given, expected, 2e-5 * expected) << "step " << i;
  }
  const std::vector<Tensor> batch = {data[0], data[1]};
  EXPECT_LT(scheduled.program->program(batch).arena_bytes(),
            plain.program->program(batch).arena_bytes());
}

INSTANTIATE_TEST_SUITE_P(Devices, GptLosses, ::testing::Values(DeviceType::cpu, DeviceType::cuda),
                         [](const auto& one) {
                           return std::string(one.param == DeviceType::cpu ? "cpu" : "cuda");
                         });

}  // namespace
}  // namespace tenon
