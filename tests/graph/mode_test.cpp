// Modes of modules in a trace: calls that follow their module's mode, modules whose mode is not the
// root's, and code that asks. Whatever a Program does is what the model does, or it is stale.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "autograd/autograd.h"
#include "nn/sgd.h"
#include "schedule/report.h"
#include "schedule/schedule.h"
#include "schedule/schedule_json.h"
#include "schedule/training.h"
#include "schedule/verification.h"
#include "tensor/random.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace mode_test {

using test::function_model;
using test::max_difference;

constexpr std::int64_t kChannels = 3;

/// Calls batch_norm itself, outside of nn's layers.
struct OwnNorm : nn::Module {
  Tensor forward(const Tensor& x) const {
    return batch_norm(x, mean, var, weight, Tensor(), DropoutMode::follow, 0.3);
  }
  Tensor weight = register_parameter("weight", randn({kChannels}));
  Tensor mean = register_buffer("mean", randn({kChannels}));
  Tensor var = register_buffer("var", full({kChannels}, 2.0));
};

/// What reads a mode, and what does not, around a convolution.
struct Net : nn::Module {
  Tensor forward(const Tensor& x) const {
    const Tensor y = relu(own(drop(norm(conv(x)))));
    const Tensor z = batch_norm(y, mean, var, {}, {});
    return scaled_dot_product_attention(z, z, z, {}, {.dropout_p = 0.25});
  }
  nn::Child<nn::Conv2d> conv = add<nn::Conv2d>("conv", 2, kChannels, 3);
  nn::Child<nn::BatchNorm2d> norm = add<nn::BatchNorm2d>("norm", kChannels);
  nn::Child<nn::Dropout> drop = add<nn::Dropout>("drop", 0.3);
  nn::Child<OwnNorm> own = add<OwnNorm>("own");
  Tensor mean = register_buffer("mean", zeros({kChannels}));
  Tensor var = register_buffer("var", ones({kChannels}));
};

Tensor batch() { return randn({4, 2, 6, 6}) * 2.0 + 1.0; }

/// The mode of the root, and of submodules that have another.
struct Modes {
  bool root = true;
  std::vector<std::string> others;
  void set(nn::Module& model, bool training) const {
    model.train(training);
    for (const std::string& path : others) model.submodule(path).train(!root);
  }
  void set(nn::Module& model) const { set(model, root); }
  std::string to_string() const {
    return fmt::format("root in {}, others: {}", root ? "training" : "eval",
                       fmt::join(others, ", "));
  }
};

const std::vector<Modes>& all_modes() {
  static const std::vector<Modes> modes = [] {
    std::vector<Modes> result;
    const std::vector<std::string> sets[] = {{},      {"norm"},        {"drop"},
                                             {"own"}, {"norm", "own"}, {"norm", "drop", "own"}};
    for (const bool root : {true, false}) {
      for (const auto& others : sets) result.push_back({root, others});
    }
    return result;
  }();
  return modes;
}

nn::Child<Net> twin_of(const nn::Child<Net>& model) {
  auto twin = nn::make<Net>();
  twin->load_state_dict(model->state_dict());
  return twin;
}

void expect_same_buffers(nn::Module& a, nn::Module& b, double tolerance = 1e-6) {
  for (const auto& [name, buffer] : a.named_buffers()) {
    EXPECT_LE(max_difference(buffer, b.buffer(name)), tolerance) << name;
  }
}

struct ModeTest : ::testing::Test {
  void TearDown() override { manual_seed(0); }
};
using PinnedModes = ModeTest;
using ModeRead = ModeTest;
using StaleModes = ModeTest;

TEST_F(PinnedModes, ForwardRunsAsTheEagerModelInBothModes) {
  for (const Modes& modes : all_modes()) {
    SCOPED_TRACE(modes.to_string());
    const auto model = nn::make<Net>();
    const auto twin = twin_of(model);
    modes.set(*model);
    Executor run = build(create_schedule(model, {{"x", batch()}}));
    for (const bool training : {true, false, true}) {
      const Tensor x = batch();
      modes.set(*twin, training);
      manual_seed(5);
      const Tensor expected = twin(x);
      manual_seed(5);
      EXPECT_LE(max_difference(run.run(std::span(&x, 1), training).at(0), expected), 1e-5)
          << "run in " << (training ? "training" : "eval");
      expect_same_buffers(*model, *twin);
    }
  }
}

TEST_F(PinnedModes, AFrozenNormsStatisticsAreNoStateThatIsWritten) {
  const auto model = nn::make<Net>();
  model->norm->eval();
  model->own->eval();
  const Schedule sch = create_schedule(model, {{"x", batch()}});
  std::vector<std::string> written;
  for (const StateWrite& write : sch.graph().writes()) {
    written.push_back(sch.graph().value(write.state).name);
  }
  EXPECT_EQ(written, (std::vector<std::string>{"mean", "var"})) << "those of the root's own call";
}

TEST_F(PinnedModes, TrainingStepsTakeTheEagerCourse) {
  for (const Modes& modes : all_modes()) {
    if (!modes.root) continue;
    for (const bool scheduled : {false, true}) {
      SCOPED_TRACE(fmt::format("{}, {}", modes.to_string(), scheduled ? "scheduled" : "as traced"));
      const auto model = nn::make<Net>();
      const auto twin = twin_of(model);
      modes.set(*model);
      modes.set(*twin);
      Schedule sch = create_schedule(model, {{"x", batch()}});
      if (scheduled) {
        sch.replace([](const Tensor& x) { return maximum(x, zeros({}, {x.dtype()})); },
                    sch.find([](const Tensor& x) { return relu(x); }));
      }
      TrainingOptions options;
      options.loss = [](auto outputs, auto) { return mean(square(outputs[0] - 0.5)) * 10.0; };
      options.optimizer =
          std::make_shared<nn::SGD>(model->named_parameters(), nn::SgdOptions{.lr = 0.05});
      TrainingStep step = build_training(sch, options);
      nn::SGD eager(twin->named_parameters(), nn::SgdOptions{.lr = 0.05});
      for (int i = 0; i < 4; ++i) {
        const Tensor x = batch();
        manual_seed(static_cast<std::uint64_t>(i));
        const Tensor loss = options.loss(std::vector{twin(x)}, std::span<const Tensor>());
        eager.zero_grad();
        backward(loss);
        eager.step();
        manual_seed(static_cast<std::uint64_t>(i));
        EXPECT_LE(max_difference(step.run({x}).loss, loss), 1e-4) << "step " << i;
        expect_same_buffers(*model, *twin, 1e-4);
      }
      for (const auto& [name, parameter] : model->named_parameters()) {
        EXPECT_LE(max_difference(parameter, twin->parameter(name)), 1e-4) << name;
      }
    }
  }
}

TEST_F(PinnedModes, SecondDerivativesKnowThePinnedMode) {
  struct Normed : nn::Module {
    Tensor forward(const Tensor& x) const { return exp(norm(x) * 0.3); }
    nn::Child<nn::BatchNorm2d> norm = add<nn::BatchNorm2d>("norm", kChannels);
  };
  const auto model = nn::make<Normed>();
  model->norm->eval();
  const auto loss = [&](std::span<const Tensor> outputs, std::span<const Tensor>) {
    const Tensor y = mean(outputs[0]);
    const Tensor slope =
        grad(std::span(&y, 1), std::span(&model->norm->weight, 1), {}, {.create_graph = true})[0];
    return y + sum(square(slope));
  };
  const Tensor x = randn({4, kChannels, 2, 2}) + 1.0;
  TrainingStep step = build_training(create_schedule(model, {{"x", x}}), {.loss = loss});
  const auto found = step.run({x}).gradients;
  const Tensor y = model(x);
  backward(loss(std::span(&y, 1), {}));
  ASSERT_EQ(found.size(), 2U);
  for (const auto& [name, gradient] : found) {
    EXPECT_LE(max_difference(gradient, model->parameter(name).grad()), 1e-6) << name;
  }
}

TEST_F(PinnedModes, ALossThatIsAModuleKeepsItsMode) {
  for (const bool frozen : {true, false}) {
    const auto make = [] { return nn::make<nn::Linear>(4, 4); };
    const auto model = make();
    const auto twin = make();
    twin->load_state_dict(model->state_dict());
    const auto judge = nn::make<nn::Dropout>(0.5);
    judge->train(!frozen);
    TrainingOptions options;
    options.loss = [judge](auto outputs, auto) { return mean(square(judge(outputs[0]))); };
    TrainingStep step = build_training(create_schedule(model, {{"x", randn({8, 4})}}), options);
    const Tensor x = randn({8, 4});
    const double plain = mean(square(twin(x))).item();
    const double loss = step.run({x}).loss.item();
    EXPECT_EQ(std::abs(loss - plain) < 1e-6, frozen);
    judge->train(frozen);
    EXPECT_THROW(step.run({x}), StaleProgram);
  }
}

TEST_F(PinnedModes, WhatReplacesAModuleActsInItsMode) {
  struct Other : nn::Module {
    Tensor forward(const Tensor& x) const { return drop(x) + 0.0; }
    nn::Child<nn::Dropout> drop = add<nn::Dropout>("drop", 0.2);
  };
  for (const bool root : {true, false}) {
    for (const bool differs : {true, false}) {
      const auto model = nn::make<test::ResidualMlp>(8);
      model->train(root);
      if (differs) model->drop->train(!root);
      Schedule sch = create_schedule(model, {{"x", randn({2, 8})}});
      sch["drop"].replace(nn::make<Other>());
      EXPECT_NO_THROW(build(sch)) << root << differs;
    }
  }
}

TEST_F(PinnedModes, AFunctionActsInTheModeOfTheModuleItStandsIn) {
  struct Outer : nn::Module {
    Tensor forward(const Tensor& x) const { return inner(x) + x; }
    struct Inner : nn::Module {
      Tensor forward(const Tensor& x) const { return exp(dropout(x, 0.4)); }
    };
    nn::Child<Inner> inner = add<Inner>("inner");
  };
  const auto model = nn::make<Outer>();
  model->inner->eval();
  Schedule sch = create_schedule(model, {{"x", randn({2, 8})}});
  const Matches matches =
      sch["inner"].find([](const Tensor& x) { return exp(dropout(x, 0.4, DropoutMode::eval)); });
  sch.replace([](const Tensor& x) { return exp(dropout(x, 0.4)) * 1.0; }, matches);
  EXPECT_NO_THROW(build(sch)) << to_text(sch.graph());
}

TEST_F(PinnedModes, ASavedScheduleFindsThePinnedCallAgain) {
  struct Block : nn::Module {
    Tensor forward(const Tensor& x) const { return relu(norm(x)); }
    nn::Child<nn::BatchNorm2d> norm = add<nn::BatchNorm2d>("norm", kChannels);
  };
  const auto make = [](bool frozen) {
    const auto model = nn::make<Block>();
    if (frozen) model->norm->eval();
    return create_schedule(model, {{"x", randn({2, kChannels, 4, 4})}});
  };
  const auto pattern = [](const Tensor& x, const Tensor& mean, const Tensor& var, const Tensor& w,
                          const Tensor& b) {
    return relu(batch_norm(x, mean, var, w, b, DropoutMode::eval));
  };
  EXPECT_TRUE(make(false).find(pattern).empty())
      << "a norm that follows its module is another call";
  Schedule sch = make(true);
  EXPECT_EQ(sch.find(pattern).size(), 1U) << to_text(sch.graph());
  sch.checkpoint(sch.find(pattern));
  Schedule again = make(true);
  load_schedule(again, save_schedule(sch));
  EXPECT_EQ(to_text(again.graph()), to_text(sch.graph()));
  Schedule follows = make(false);
  EXPECT_THROW(load_schedule(follows, save_schedule(sch)), ScheduleError);
}

// --- code that asks for its mode ----------------------------------------------------------------

struct Asking : nn::Module {
  Tensor forward(const Tensor& x) const { return training() ? x * 2.0 : x + 1.0; }
};
struct AskingRoot : nn::Module {
  Tensor forward(const Tensor& x) const { return drop(ask(linear(x))); }
  nn::Child<nn::Linear> linear = add<nn::Linear>("linear", 4, 4);
  nn::Child<Asking> ask = add<Asking>("ask");
  nn::Child<nn::Dropout> drop = add<nn::Dropout>("drop", 0.5);
};

TEST_F(ModeRead, TheGraphHoldsForThatModeOnly) {
  for (const bool training : {true, false}) {
    const auto model = nn::make<AskingRoot>();
    model->train(training);
    const Tensor x = randn({3, 4});
    const Schedule sch = create_schedule(model, {{"x", x}});
    Executor run = build(sch);
    manual_seed(3);
    const Tensor expected = model(x);
    manual_seed(3);
    EXPECT_LE(max_difference(run.run(std::span(&x, 1), training).at(0), expected), 1e-6);
    const std::string then = training ? "training" : "eval";
    const std::string now = training ? "eval" : "training";
    const std::string text =
        "module 'ask' asked training() while the model was traced in " + then +
        " mode, and its code may do something else in " + now + " mode: trace it again after " +
        (training ? "eval()" : "train()") +
        ", or let it call ops that follow the mode, as dropout and batch_norm do";
    EXPECT_ERROR(StaleProgram, text, run.run(std::span(&x, 1), !training));
    EXPECT_ERROR(StaleProgram, text, lower(sch.graph(), {x.spec()}, {.training = !training}));
    EXPECT_NO_THROW(lower(sch.graph(), {x.spec()}, {.training = training})->run(std::span(&x, 1)));
    EXPECT_TRUE(verify(sch).ok()) << verify(sch).to_string();
    EXPECT_NO_THROW(report(sch, {.training = training}));
    TrainingOptions options;
    options.loss = [](auto outputs, auto) { return mean(outputs[0]); };
    if (training) {
      TrainingStep step = build_training(sch, options);
      manual_seed(3);
      EXPECT_LE(max_difference(step.run({x}).loss, mean(expected)), 1e-6);
    } else {
      EXPECT_ERROR(StaleProgram, text, build_training(sch, options));
    }
  }
}

TEST_F(ModeRead, AModuleWithAModeOfItsOwnRunsInBoth) {
  for (const bool training : {true, false}) {
    const auto model = nn::make<AskingRoot>();
    model->train(training);
    model->ask->train(!training);
    const Tensor x = randn({3, 4});
    Executor run = build(create_schedule(model, {{"x", x}}));
    for (const bool mode : {true, false}) {
      model->train(mode);
      model->ask->train(!training);
      manual_seed(3);
      const Tensor expected = model(x);
      manual_seed(3);
      EXPECT_LE(max_difference(run.run(std::span(&x, 1), mode).at(0), expected), 1e-6);
    }
    model->ask->train(training);
    EXPECT_THROW(run(x), StaleProgram);
  }
}

TEST_F(ModeRead, TheRootAndItsCallerMayAskToo) {
  const Tensor x = randn({3, 4});
  const auto root = nn::make<Asking>();
  EXPECT_THROW(build(create_schedule(root, {{"x", x}}))(x), StaleProgram);
  root->eval();
  EXPECT_NO_THROW(build(create_schedule(root, {{"x", x}}))(x));

  const auto model = nn::make<nn::Linear>(4, 4);
  const Schedule sch =
      create_schedule(model.shared(),
                      [&](std::span<const Tensor> inputs) {
                        return std::vector{model->training() ? model(inputs[0]) : inputs[0]};
                      },
                      {{"x", x}});
  EXPECT_THROW(build(sch)(x), StaleProgram);
  EXPECT_NO_THROW(build(sch).run(std::span(&x, 1), true));
}

TEST_F(ModeRead, AReplacementThatAsksIsHeldToItsMode) {
  const auto model = nn::make<test::ResidualMlp>(8);
  const Tensor x = randn({2, 8});
  struct Scale : nn::Module {
    Tensor forward(const Tensor& t) const { return gelu(t) * (training() ? 1.0 : 2.0); }
  };
  Schedule sch = create_schedule(model, {{"x", x}});
  sch["act"].replace(nn::make<Scale>());
  Executor run = build(sch);
  EXPECT_NO_THROW(run.run(std::span(&x, 1), true));
  EXPECT_THROW(run(x), StaleProgram);
  Schedule loaded = create_schedule(model, {{"x", x}});
  load_schedule(loaded, save_schedule(sch));
  EXPECT_THROW(build(loaded)(x), StaleProgram) << "its module is gone, what it asked is known";

  model->act->eval();
  Schedule frozen = create_schedule(model, {{"x", x}});
  EXPECT_THROW(frozen["act"].replace(nn::make<Scale>()), ScheduleError);
}

// --- modes that change after the trace ----------------------------------------------------------

TEST_F(StaleModes, AModuleThatLeavesItsRootsModeStopsEveryRun) {
  for (const char* path : {"norm", "drop", "own"}) {
    SCOPED_TRACE(path);
    const auto model = nn::make<Net>();
    const Tensor x = batch();
    const Schedule sch = create_schedule(model, {{"x", x}});
    TrainingOptions options;
    options.loss = [](auto outputs, auto) { return mean(outputs[0]); };
    Executor run = build(sch);
    TrainingStep step = build_training(sch, options);
    run(x);
    step.run({x});
    Program& program = run.program(std::vector{x});
    model->submodule(path).eval();
    const std::string text = fmt::format(
        "module '{}' is in eval mode and its root in training mode; they were in one mode when the "
        "model was traced: put it back, or trace and build again",
        path);
    EXPECT_ERROR(StaleProgram, text, run(x));
    EXPECT_ERROR(StaleProgram, text, run(randn({2, 2, 7, 7})));
    EXPECT_ERROR(StaleProgram, text, program.run(std::vector{x}));
    EXPECT_ERROR(StaleProgram, text, step.run({x}));
    EXPECT_ERROR(StaleProgram, text, build(sch));
    EXPECT_ERROR(StaleProgram, text, build(sch, {.verify = false}));
    EXPECT_ERROR(StaleProgram, text, build_training(sch, options));
    model->eval();
    EXPECT_NO_THROW(run(x)) << "all in one mode";
    model->train();
    EXPECT_NO_THROW(step.run({x}));
  }
}

TEST_F(StaleModes, AFrozenModuleThatThawsStopsEveryRun) {
  const auto model = nn::make<Net>();
  model->norm->eval();
  const Tensor x = batch();
  const Schedule sch = create_schedule(model, {{"x", x}});
  TrainingOptions options;
  options.loss = [](auto outputs, auto) { return mean(outputs[0]); };
  Executor run = build(sch);
  TrainingStep step = build_training(sch, options);
  const std::string text =
      "module 'norm' is in training mode; it was in eval mode, unlike its root, when the model was "
      "traced: put it back, or trace and build again";
  model->eval();
  EXPECT_NO_THROW(run(x)) << "it is what it was";
  model->train();
  EXPECT_ERROR(StaleProgram, text, run(x));
  EXPECT_ERROR(StaleProgram, text, step.run({x}));
  EXPECT_ERROR(StaleProgram, text, build(sch));
  model->norm->eval();
  EXPECT_NO_THROW(step.run({x}));
}

TEST_F(StaleModes, ModulesWhoseOpsHaveNoModeDoNotMatter) {
  struct Plain : nn::Module {
    Tensor forward(const Tensor& x) const { return up(free_of(none(x))); }
    nn::Child<nn::Dropout> none = add<nn::Dropout>("none", 0.0);
    nn::Child<nn::BatchNorm2d> free_of =
        add<nn::BatchNorm2d>("free_of", kChannels, 1e-5, 0.1, true, false);
    nn::Child<nn::Conv2d> up = add<nn::Conv2d>("up", kChannels, 2, 1);
  };
  const auto model = nn::make<Plain>();
  const Tensor x = randn({2, kChannels, 3, 3});
  Executor run = build(create_schedule(model, {{"x", x}}));
  const Tensor expected = run(x);
  for (const char* path : {"none", "free_of", "up"}) {
    model->submodule(path).eval();
    EXPECT_EQ(max_difference(run(x), expected), 0) << path;
  }
}

TEST_F(StaleModes, RewritesKeepTheFacts) {
  const auto model = nn::make<test::ResidualMlp>(8);
  const Tensor x = randn({2, 8});
  Schedule sch = create_schedule(model, {{"x", x}});
  struct Other : nn::Module {
    Tensor forward(const Tensor& t) const { return dropout(t, 0.2) + 0.0; }
  };
  sch["drop"].replace(nn::make<Other>());
  Executor run = build(sch);
  run(x);
  Graph bare = sch.graph().without_nodes();
  model->drop->eval();
  EXPECT_THROW(run(x), StaleProgram);
  EXPECT_THROW(require_current(bare), StaleProgram);
}

// --- grad mode and sizes ------------------------------------------------------------------------

TEST(GradModeRead, TheGraphHoldsWhereGradModeIsOn) {
  const auto model =
      function_model([](const Tensor& x) { return grad_enabled() ? x * 2.0 : x.detach() * 3.0; });
  const Tensor x = randn({3});
  const Schedule sch = create_schedule(model, {{"x", x}});
  {
    const NoGradGuard no_grad;
    EXPECT_NO_THROW(build(sch)) << "a build's own runs do not depend on it";
  }
  Executor run = build(sch);
  EXPECT_EQ(max_difference(run(x), model(x)), 0);
  const NoGradGuard no_grad;
  EXPECT_ERROR(StaleProgram,
               "the model asked grad_enabled() while it was traced, where grad mode is on, and its "
               "code may do something else under a NoGradGuard: run it with grad mode on, or call "
               "the model itself",
               run(x));
}

TEST(GradModeRead, AGuardOfTheModelsOwnIsNoFactOfTheHost) {
  const auto model = function_model([](const Tensor& x) {
    const NoGradGuard no_grad;
    return grad_enabled() ? x * 2.0 : x * 3.0;
  });
  const Tensor x = randn({3});
  Executor run = build(create_schedule(model, {{"x", x}}));
  const NoGradGuard no_grad;
  EXPECT_EQ(max_difference(run(x), x * 3.0), 0);
}

TEST(GradModeRead, ATrainingStepHasGradModeOn) {
  const auto model = nn::make<nn::Linear>(4, 4);
  const Tensor x = randn({3, 4});
  TrainingOptions options;
  options.loss = [](auto outputs, auto) {
    return mean(grad_enabled() ? outputs[0] : outputs[0] * 3.0);
  };
  TrainingStep step = build_training(create_schedule(model, {{"x", x}}), options);
  const NoGradGuard no_grad;
  EXPECT_NO_THROW(step.run({x}));
}

TEST(Hints, WhatCodeReadsIsAGuard) {
  const auto check = [](const std::function<Tensor(const Tensor&)>& forward,
                        const Shape& other_sizes, const std::string& guard) {
    const auto model = function_model(forward);
    Executor run(create_schedule(model, {{"x", randn({4, 6})}}).graph());
    const Tensor x = randn({4, 6});
    EXPECT_EQ(max_difference(run(x), forward(x)), 0);
    const std::string text = test::error_text<TraceError>([&] { run(randn(other_sizes)); });
    EXPECT_NE(text.find(guard), std::string::npos) << text;
  };
  check([](const Tensor& x) { return x * static_cast<double>(x.size(0).hint()); }, {5, 6},
        "s0 == 4");
  check([](const Tensor& x) { return x * static_cast<double>(x.numel().hint()); }, {4, 7},
        "s0*s1 == 24");
  check([](const Tensor& x) { return x * static_cast<double>(x.shape().hints()[1]); }, {4, 7},
        "s1 == 6");
  check([](const Tensor& x) { return x * sqrt(x.size(1)).hint(); }, {4, 7}, "s1 == 6");
}

TEST(Hints, TextIsNone) {
  const auto model = function_model([](const Tensor& x) {
    EXPECT_EQ(x.size(0).to_string() + x.shape().to_string(), "s0(s0, s1)");
    EXPECT_THROW(reshape(x, {7}), ShapeError);
    return x + 1.0;
  });
  const Schedule sch = create_schedule(model, {{"x", randn({4, 6})}});
  EXPECT_EQ(sch.graph().inputs().size(), 1U);
  EXPECT_EQ(sch.graph().value(sch.graph().inputs()[0]).spec.shape.hints(),
            (std::vector<std::int64_t>{4, 6}));
  EXPECT_TRUE(sch.graph().guards()->guards.empty()) << "reading a Graph adds none";
}

}  // namespace mode_test
}  // namespace tenon
