// Hooks and Programs: trials run none of the user's gradient hooks, a training step records them, and a
// hook that comes or goes after tracing makes what was built stale instead of being passed over.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "autograd/autograd.h"
#include "nn/sgd.h"
#include "schedule/report.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "schedule/verification.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace hooks_test {

using test::max_difference;

constexpr std::int64_t kHidden = 8;

struct Hooked : ::testing::Test {
  nn::Child<test::ResidualMlp> model = nn::make<test::ResidualMlp>(kHidden);
  Tensor x = randn({3, kHidden});
  Tensor weight = model->up->weight;

  Schedule scheduled() {
    Schedule sch = create_schedule(model, {{"x", x}});
    sch["up"].decompose();
    return sch;
  }
  TrainingOptions options(bool with_optimizer = true, int micro_batches = 1) {
    TrainingOptions result;
    result.loss = [](auto outputs, auto) { return mean(square(outputs[0])); };
    result.micro_batches = micro_batches;
    if (with_optimizer) {
      result.optimizer =
          std::make_shared<nn::SGD>(model->named_parameters(), nn::SgdOptions{.lr = 0.1});
    }
    return result;
  }
  /// Counts its calls, and reads the gradient as a logger does.
  std::function<void()> log_gradients(const Tensor& tensor) {
    return register_hook(tensor, [this](const Tensor& g) {
      ++calls;
      (void)sum(g).item();
      return Tensor();
    });
  }
  int calls = 0;
};
using TrialHooks = Hooked;
using TrainingHooks = Hooked;
using StaleHooks = Hooked;

TEST_F(TrialHooks, BuildVerifiesWithoutTheUsersGradientHooks) {
  for (const auto& [name, parameter] : model->named_parameters()) log_gradients(parameter);
  const Schedule sch = scheduled();
  Executor run = build(sch);
  EXPECT_TRUE(verify(sch).ok()) << verify(sch).to_string();
  EXPECT_NO_THROW(report(sch, {.training = true}));
  EXPECT_EQ(calls, 0);
  model->eval();
  EXPECT_LE(max_difference(run(x), model(x)), 1e-5);
  backward(sum(model(x)));
  EXPECT_GT(calls, 0) << "eagerly they run as ever";
}

TEST_F(TrialHooks, AHookThatChangesGradientsHidesNoDifferenceOfTrials) {
  register_hook(weight, [](const Tensor& g) { return g * 0.0; });
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.replace([](const Tensor& t) { return gelu(t.detach()) + t * 0.0; },
              sch.find([](const Tensor& t) { return gelu(t); }));
  EXPECT_FALSE(verify(sch).ok()) << "the gradient of up.weight is 0";
  EXPECT_THROW(build(sch), VerificationError);
}

TEST_F(TrialHooks, GradWithoutLeafHooksRunsNone) {
  log_gradients(weight);
  const Tensor y = sum(square(weight));
  const GradOptions silent{.retain_graph = true, .leaf_hooks = false};
  EXPECT_EQ(
      max_difference(grad(std::span(&y, 1), std::span(&weight, 1), {}, silent)[0], weight * 2.0),
      0);
  EXPECT_EQ(calls, 0);
  grad(std::span(&y, 1), std::span(&weight, 1));
  EXPECT_EQ(calls, 1);
}

TEST_F(TrainingHooks, OpsOfAHookArePartOfTheStep) {
  register_hook(weight, [](const Tensor& g) { return g * 0.5; });
  register_hook(weight, [](const Tensor& g) { return g + 1.0; });
  model->drop->eval();
  for (const int micro_batches : {1, 2}) {
    const auto twin = nn::make<test::ResidualMlp>(kHidden);
    twin->load_state_dict(model->state_dict());
    twin->drop->eval();
    register_hook(twin->up->weight, [](const Tensor& g) { return g * 0.5 + 1.0; });
    TrainingStep step = build_training(scheduled(), options(true, micro_batches));
    nn::SGD eager(twin->named_parameters(), nn::SgdOptions{.lr = 0.1});
    for (int i = 0; i < micro_batches; ++i) {
      step.run({x});
      backward(mean(square(twin(x))) * (1.0 / micro_batches));
    }
    if (micro_batches == 1) {
      eager.step();
      EXPECT_LE(max_difference(model->up->weight, twin->up->weight), 1e-6);
    }
  }
  TrainingStep gradients = build_training(scheduled(), options(false));
  for (const auto& [name, gradient] : gradients.run({x}).gradients) {
    if (name == "up.weight") {
      EXPECT_GT(gradient.to_doubles()[0], 0.5);
    }
  }
}

TEST_F(TrainingHooks, AHookThatAsksForNumbersIsRefusedByName) {
  const auto take_off = log_gradients(weight);
  const std::string text =
      test::error_text<ScheduleError>([&] { build_training(scheduled(), options()); });
  EXPECT_EQ(
      text.find("build_training: a gradient hook of parameter 'up.weight' cannot be recorded: "
                "item() under the tracer"),
      0U)
      << text;
  EXPECT_NE(text.find("Take it off, or let it call ops only"), std::string::npos) << text;
  take_off();
  EXPECT_NO_THROW(build_training(scheduled(), options()).run({x}));
}

TEST_F(StaleHooks, AGradientHookAddedOrTakenOffAfterATrainingBuildStopsTheNextRun) {
  for (const bool with_optimizer : {true, false}) {
    for (const int micro_batches : {1, 2}) {
      if (!with_optimizer && micro_batches > 1) continue;
      TrainingStep step = build_training(scheduled(), options(with_optimizer, micro_batches));
      step.run({x});
      const auto take_off = register_hook(weight, [](const Tensor& g) { return g * 2.0; });
      const Tensor before = weight.clone();
      EXPECT_ERROR(StaleProgram,
                   "a hook of parameter 'up.weight' was added or taken off since the model was "
                   "traced; trace and build again",
                   step.run({x}));
      EXPECT_EQ(max_difference(weight, before), 0);
      TrainingStep with_hook = build_training(scheduled(), options(with_optimizer, micro_batches));
      with_hook.run({x});
      take_off();
      EXPECT_THROW(with_hook.run({x}), StaleProgram);
      EXPECT_NO_THROW(step.run({x})) << "its hooks are what they were";
    }
  }
}

TEST_F(StaleHooks, GradientHooksDoNotConcernAForwardProgram) {
  Executor run = build(scheduled());
  const Tensor before = run(x);
  register_hook(weight, [](const Tensor& g) { return g * 2.0; });
  EXPECT_EQ(max_difference(run(x), before), 0);
}

/// A forward hook on the module itself, or one below it that the schedule left or replaced.
TEST_F(StaleHooks, AForwardHookAddedOrTakenOffAfterTracingStopsBuildAndRun) {
  for (const char* path : {"", "up", "act", "norm"}) {
    for (const bool before_forward : {true, false}) {
      nn::Module& module = model->submodule(path);
      const auto add = [&] {
        if (before_forward) {
          return module.register_forward_pre_hook(
              [](auto&, std::span<Tensor> in) { in[0] = in[0] * 2.0; });
        }
        return module.register_forward_hook(
            [](auto&, auto, std::span<Tensor> out) { out[0] = out[0] * 2.0; });
      };
      const Schedule sch = scheduled();
      Executor run = build(sch);
      TrainingStep step = build_training(sch, options());
      run(x);
      Program& program = run.program(std::vector{x});
      nn::HookHandle hook = add();
      const std::string text =
          "a hook of module '" + std::string(path) +
          "' was added or taken off since the model was traced; trace and build again";
      EXPECT_ERROR(StaleProgram, text, run(x));
      EXPECT_ERROR(StaleProgram, text, run(randn({5, kHidden})));
      EXPECT_ERROR(StaleProgram, text, program.run(std::vector{x}));
      EXPECT_ERROR(StaleProgram, text, step.run({x}));
      EXPECT_ERROR(StaleProgram, text, build(sch));
      EXPECT_ERROR(StaleProgram, text, build_training(sch, options()));

      Executor with_hook = build(create_schedule(model, {{"x", x}}));
      model->eval();
      EXPECT_LE(max_difference(with_hook(x), model(x)), 1e-5) << path;
      model->train();
      hook.remove();
      EXPECT_ERROR(StaleProgram, text, with_hook(x));
      EXPECT_NO_THROW(run(x)) << "its hooks are what they were";
    }
  }
}

TEST_F(StaleHooks, WithoutVerificationTheHooksOfTheBuildCount) {
  const Schedule sch = scheduled();
  nn::HookHandle hook = model->up->register_forward_hook([](auto&, auto, auto) {});
  TrainingOptions unverified = options();
  unverified.verify = false;
  Executor run = build(sch, {.verify = false});
  TrainingStep step = build_training(sch, unverified);
  EXPECT_NO_THROW(run(x));
  EXPECT_NO_THROW(step.run({x}));
  hook.remove();
  EXPECT_THROW(run(x), StaleProgram);
  EXPECT_THROW(step.run({x}), StaleProgram);
}

TEST_F(StaleHooks, AModuleWithoutHooksMayGoAway) {
  Executor run = [&] {
    const auto other = nn::make<nn::Linear>(kHidden, 2);
    return build(create_schedule(other, {{"x", x}}));
  }();
  EXPECT_EQ(run(x).size(1).value(), 2);
}

}  // namespace hooks_test
}  // namespace tenon
