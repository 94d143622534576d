// Random tensors made in a traced forward are nodes like dropout: new numbers at each run, the same
// as eagerly, through schedules, training and JSON; and what cannot be recorded is refused.
#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <set>

#include "autograd/autograd.h"
#include "schedule/report.h"
#include "schedule/schedule.h"
#include "schedule/schedule_json.h"
#include "schedule/training.h"
#include "schedule/verification.h"
#include "tensor/random.h"
#include "tests/support/compare.h"
#include "tests/support/count_nodes.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace random_nodes_test {

using test::function_model;
using test::max_difference;
using UnaryModel = std::function<Tensor(const Tensor&)>;

struct RandomNodes : ::testing::Test {
  void SetUp() override { manual_seed(21); }
  void TearDown() override { manual_seed(0); }
};

struct Case {
  std::string name;
  UnaryModel model;
};

std::vector<Case> cases() {
  return {
      {"noise of fixed sizes", [](const Tensor& x) { return x + randn({6}) * 0.5; }},
      {"noise of the input's sizes", [](const Tensor& x) { return x * randn(x.shape()); }},
      {"leaky", [](const Tensor& x) { return x * uniform({6}, 0.1, 0.3); }},
      {"two noises", [](const Tensor& x) { return x + randn(x.shape()) + randn(x.shape()); }},
      {"integers",
       [](const Tensor& x) { return x + randint(-9, 9, x.shape()).to(DType::float32); }},
      {"bounds of sizes",
       [](const Tensor& x) { return x + randint(0, x.size(0) * 4, x.shape()).to(DType::float32); }},
      {"shuffled rows", [](const Tensor& x) { return index_select(x, 0, randperm(x.size(0))); }},
      {"chosen rows",
       [](const Tensor& x) { return embedding(randint(0, 3, {x.size(0)}), x.narrow(0, 0, 3)); }},
      {"noise and dropouts",
       [](const Tensor& x) { return dropout(x, 0.2) + dropout(randn(x.shape()), 0.5); }},
      {"dropout that trains in evaluation",
       [](const Tensor& x) { return dropout(x, 0.5, DropoutMode::train); }},
      {"mask by uniform",
       [](const Tensor& x) { return masked_fill(x, lt(uniform(x.shape(), 0, 1), 0.3), 0); }},
      {"16 bits",
       [](const Tensor& x) {
         return x + randn(x.shape(), {DType::bfloat16}).to(DType::float32) +
                uniform(x.shape(), -1, 1, {DType::float16}).to(DType::float32);
       }},
      {"float64", [](const Tensor& x) { return x + randn({6}, {DType::float64}).to(x.dtype()); }},
      {"integer uniform",
       [](const Tensor& x) { return x + uniform({6}, 0, 50, {DType::int64}).to(x.dtype()); }},
      {"nothing but noise",
       [](const Tensor& x) {
         return randn({x.size(0), 4});
       }},
  };
}

/// Noise inside of submodules, whose sites count through.
struct NoisyBlock : nn::Module {
  explicit NoisyBlock(std::int64_t n)
      : up(add<nn::Linear>("up", n, 2 * n)),
        drop(add<nn::Dropout>("drop", 0.3)),
        down(add<nn::Linear>("down", 2 * n, n)) {}
  Tensor forward(const Tensor& x) const {
    const Tensor h = drop(gelu(up(x))) + randn({x.size(0), up->weight.size(0)}) * 0.1;
    return down(h) + x * uniform(x.shape(), 0.9, 1.1);
  }
  nn::Child<nn::Linear> up;
  nn::Child<nn::Dropout> drop;
  nn::Child<nn::Linear> down;
};

TEST_F(RandomNodes, EagerCallAndProgramRunOfOneNumberDrawTheSame) {
  for (const Case& c : cases()) {
    const auto model = function_model(c.model);
    Executor run = build(create_schedule(model, {{"x", ones({5, 6})}}));
    for (const bool training : {true, false}) {
      model->train(training);
      for (const std::int64_t rows : {5, 4, 7}) {
        const Tensor x = randn({rows, 6});
        manual_seed(99);
        std::vector<Tensor> eager;
        for (int i = 0; i < 3; ++i) eager.push_back(model(x));
        manual_seed(99);
        for (int i = 0; i < 3; ++i) {
          EXPECT_EQ(max_difference(run.run(std::span(&x, 1), training)[0],
                                   eager[static_cast<std::size_t>(i)]),
                    0)
              << c.name << ", " << (training ? "training" : "eval") << ", run " << i;
        }
        EXPECT_GT(max_difference(eager[0], eager[1]) + max_difference(eager[1], eager[2]), 0)
            << c.name << ": new numbers at each call";
      }
    }
  }
}

TEST_F(RandomNodes, ModesFollowTheCallsOfAMixedSequence) {
  const auto model = nn::make<NoisyBlock>(4);
  const Tensor x = randn({3, 4});
  Executor run = build(create_schedule(model, {{"x", x}}));
  const auto sequence = [&](const std::function<Tensor(bool)>& call) {
    manual_seed(5);
    std::vector<Tensor> results;
    for (const bool training : {true, false, false, true, true, false}) {
      results.push_back(call(training));
    }
    return results;
  };
  const auto eager = sequence([&](bool training) {
    model->train(training);
    return model(x);
  });
  const auto lowered =
      sequence([&](bool training) { return run.run(std::span(&x, 1), training)[0]; });
  for (std::size_t i = 0; i < eager.size(); ++i) {
    EXPECT_EQ(max_difference(eager[i], lowered[i]), 0) << i;
  }
}

TEST_F(RandomNodes, AProgramThatDrawsNothingLeavesTheGeneratorAlone) {
  const auto model = function_model([](const Tensor& x) { return dropout(x, 0.5) * 2.0; });
  const Tensor x = ones({4});
  Executor run = build(create_schedule(model, {{"x", x}}));
  manual_seed(1);
  run.run(std::span(&x, 1), false);
  EXPECT_EQ(default_generator().state().forward, 0U);
  run.run(std::span(&x, 1), true);
  EXPECT_EQ(default_generator().state().forward, 1U);
}

TEST_F(RandomNodes, AnotherGeneratorOfARunHasItsNumbers) {
  const auto model = function_model([](const Tensor& x) { return x + randn(x.shape()); });
  const Tensor x = zeros({9});
  Executor run = build(create_schedule(model, {{"x", x}}));
  Program& program = run.program(std::span(&x, 1));
  Generator a(3);
  Generator b(3);
  const Tensor first = program.run(std::span(&x, 1), a)[0];
  manual_seed(3);
  program.run(std::span(&x, 1));  // the default one's
  EXPECT_EQ(max_difference(program.run(std::span(&x, 1), b)[0], first), 0);
  EXPECT_GT(max_difference(program.run(std::span(&x, 1), b)[0], first), 0);
}

TEST_F(RandomNodes, TrainingDrawsInAProgramWhatItDrawsEagerly) {
  const auto made = [] {
    manual_seed(31);
    auto model = nn::make<NoisyBlock>(4);
    model->requires_grad_();
    return model;
  };
  const Tensor x = ones({3, 4});
  const auto eager = made();
  const auto lowered = made();
  TrainingStep step =
      build_training(create_schedule(lowered, {{"x", x}}),
                     {.loss = [](auto outputs, auto) { return mean(square(outputs[0])); },
                      .optimizer = std::make_shared<nn::SGD>(lowered->named_parameters(),
                                                             nn::SgdOptions{.lr = 0.1})});
  nn::SGD optimizer(eager->named_parameters(), nn::SgdOptions{.lr = 0.1});
  manual_seed(6);
  std::vector<double> losses;
  for (int i = 0; i < 4; ++i) {
    optimizer.zero_grad();
    const Tensor loss = mean(square(eager(x)));
    backward(loss);
    optimizer.step();
    losses.push_back(loss.item());
  }
  manual_seed(6);
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(step.run({x}).loss.item(), losses[static_cast<std::size_t>(i)], 1e-6) << i;
  }
  EXPECT_LT(max_difference(eager->up->weight, lowered->up->weight), 1e-6);
}

TEST_F(RandomNodes, ALossThatDrawsHasSitesOfItsOwn) {
  struct Weighted : nn::Module {
    Weighted() : w(register_parameter("w", ones({6}).requires_grad_())) {}
    Tensor forward(const Tensor& x) const { return dropout(x * w, 0.2) + randn(x.shape()); }
    Tensor w;
  };
  const auto weighted = nn::make<Weighted>();
  const Tensor x = ones({4, 6});
  TrainingStep step =
      build_training(create_schedule(weighted, {{"x", x}}), {.loss = [](auto outputs, auto) {
                       return mean(dropout(outputs[0], 0.5, DropoutMode::train) * randn({4, 6}));
                     }});
  std::set<double> losses;
  for (int i = 0; i < 5; ++i) losses.insert(step.run({x}).loss.item());
  EXPECT_EQ(losses.size(), 5U);
}

TEST_F(RandomNodes, RecomputationDrawsTheSameNumbersAgain) {
  struct Outer : nn::Module {
    Outer() : block(add<NoisyBlock>("block", 4)) {}
    Tensor forward(const Tensor& x) const { return square(block(x)); }
    nn::Child<NoisyBlock> block;
  };
  const Tensor x = ones({3, 4});
  std::vector<std::vector<Tensor>> results;
  for (const bool checkpointed : {false, true}) {
    manual_seed(31);
    const auto model = nn::make<Outer>();
    model->requires_grad_();
    Schedule sch = create_schedule(model, {{"x", x}});
    if (checkpointed) sch["block"].checkpoint();
    TrainingStep step =
        build_training(sch, {.loss = [](auto outputs, auto) { return mean(outputs[0]); }});
    if (checkpointed) {
      EXPECT_EQ(test::count_nodes(step.graph(), "randn"), 2);
    }
    manual_seed(8);
    std::vector<Tensor> found;
    for (int i = 0; i < 2; ++i) {
      for (const auto& [name, gradient] : step.run({x}).gradients) found.push_back(gradient);
    }
    results.push_back(std::move(found));
  }
  ASSERT_EQ(results[0].size(), results[1].size());
  for (std::size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_EQ(max_difference(results[0][i], results[1][i]), 0) << i;
  }
}

Tensor scaled_noise(const Tensor& x) { return x + randn({6}) * 0.5; }

TEST_F(RandomNodes, APatternThatDrawsFindsEachCallAndItsReplacementKeepsTheNumbers) {
  const auto model =
      function_model([](const Tensor& x) { return scaled_noise(scaled_noise(x) * 2.0); });
  const Tensor x = ones({3, 6});
  Schedule sch = create_schedule(model, {{"x", x}});
  EXPECT_EQ(sch.find(scaled_noise).size(), 2U);
  EXPECT_EQ(sch.find([](const Tensor& a) { return a + randn({6}) * 0.25; }).size(), 0U);
  EXPECT_EQ(sch.find([](const Tensor& a) { return a + randn({7}) * 0.5; }).size(), 0U);
  EXPECT_EQ(sch.find([](const Tensor& a) { return a + uniform({6}, 0, 1) * 0.5; }).size(), 0U);
  sch.replace([](const Tensor& a) { return a + randn({6}) / 2.0; }, sch.find(scaled_noise));
  Executor run = build(sch);
  manual_seed(2);
  const Tensor expected = model(x);
  manual_seed(2);
  EXPECT_EQ(max_difference(run.run(std::span(&x, 1), true)[0], expected), 0);
}

TEST_F(RandomNodes, WildcardsStandForBoundsAndSizes) {
  const auto model = function_model([](const Tensor& x) {
    return x * uniform({x.size(0), 1}, 0.5, 1.5) + randint(0, 7, {6}).to(DType::float32);
  });
  const Schedule sch = create_schedule(model, {{"x", ones({3, 6})}});
  EXPECT_EQ(sch.find([](const Tensor& a) {
                 return a * uniform({a.size(0), 1}, any(), any());
               })
                .size(),
            1U);
  EXPECT_EQ(sch.find([](const Tensor& a) {
                 return a * uniform({a.size(0), 1}, 0.5, 2);
               })
                .size(),
            0U);
  EXPECT_EQ(
      sch.find([](const Tensor& a) { return a + cast(randint(0, any(), {any()}), DType::float32); })
          .size(),
      1U);
}

TEST_F(RandomNodes, AReplacementThatDrawsOtherwiseIsRefused) {
  const auto model = function_model([](const Tensor& x) { return scaled_noise(x) * 2.0; });
  Schedule sch = create_schedule(model, {{"x", ones({3, 6})}});
  test::expect_refused(sch, "the matched nodes draw at 1 place in training, function at 0", [&] {
    sch.replace([](const Tensor& a) { return a * 1.0; }, sch.find(scaled_noise));
  });
  test::expect_refused(sch, "the matched nodes draw at 1 place in training, function at 2", [&] {
    sch.replace([](const Tensor& a) { return a + (randn({6}) + randn({6})) * 0.25; },
                sch.find(scaled_noise));
  });
  // The same site, but not the same distribution: verification sees it.
  sch.replace([](const Tensor& a) { return a + uniform({6}, -1, 1) * 0.5; },
              sch.find(scaled_noise));
  EXPECT_THROW(build(sch), VerificationError);
}

TEST_F(RandomNodes, VerificationOf16BitsDrawsTheSameNoiseInFloat64) {
  for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32}) {
    const auto model = function_model([dtype](const Tensor& x) {
      return x * uniform(x.shape(), 0.5, 1.5, {dtype}) + randn(x.shape(), {dtype});
    });
    Schedule sch = create_schedule(model, {{"x", ones({3, 6}, {dtype})}});
    const VerifyReport report = verify(sch);
    EXPECT_TRUE(report.ok()) << report.to_string();
    for (const Comparison& c : report.results) {
      if (c.bound && c.name == "output 0") {
        EXPECT_LT(c.unscheduled_error, 64 * unit_roundoff(dtype)) << name(dtype);
      }
    }
  }
}

TEST_F(RandomNodes, AReportComparesVersionsThatDrawTheSame) {
  const auto model = function_model([](const Tensor& x) { return scaled_noise(x) * 2.0; });
  Schedule sch = create_schedule(model, {{"x", ones({3, 6})}});
  sch.replace([](const Tensor& a) { return a + randn({6}) / 2.0; }, sch.find(scaled_noise));
  const ScheduleReport measured = report(sch, {.runs = 1});
  ASSERT_EQ(measured.rows.size(), 2U);
  EXPECT_EQ(measured.rows[1].max_error, 0);
}

TEST_F(RandomNodes, AreSavedAndReplayed) {
  const auto make = [] {
    return function_model(
        [](const Tensor& x) { return scaled_noise(x) * randint(1, 5, {6}).to(x.dtype()); });
  };
  Schedule sch = create_schedule(make(), {{"x", ones({3, 6})}});
  sch.replace([](const Tensor& a) { return a + randn({6}) / 2.0; }, sch.find(scaled_noise));
  Schedule other = create_schedule(make(), {{"x", ones({3, 6})}});
  load_schedule(other, save_schedule(sch));
  EXPECT_EQ(to_text(other.graph()), to_text(sch.graph()));
  build(other);
}

TEST_F(RandomNodes, ArePrintedWithTheirAttributes) {
  const auto model = function_model([](const Tensor& x) { return x + randn({x.size(0), 6}); });
  const Schedule sch = create_schedule(model, {{"x", ones({3, 6})}});
  const std::string text = to_text(sch.graph());
  EXPECT_NE(text.find("%randn = randn(shape=(s0, 6), dtype=float32, device=cpu, site=0) : "
                      "float32(s0, 6)"),
            std::string::npos)
      << text;
  EXPECT_NE(to_dot(sch).find("randn"), std::string::npos);
}

/// A buffer that a forward fills anew: by an init function, or by copying.
struct Refilled : nn::Module {
  explicit Refilled(int kind) : noise(register_buffer("noise", zeros({6}))), how(kind) {}
  Tensor forward(const Tensor& x) const {
    Tensor target = noise;
    const NoGradGuard no_grad;
    if (how == 0) nn::init::normal_(target, 1, 0.5);
    if (how == 1) nn::init::uniform_(target, -1, 1);
    if (how == 2) target.copy_(randn({6}));
    if (how == 3) nn::init::xavier_uniform_(target.view({2, 3}));
    return x + target;
  }
  Tensor noise;
  int how;
};

TEST_F(RandomNodes, StateIsRefilledAtEachRun) {
  const Tensor x = zeros({2, 6});
  for (int how = 0; how < 3; ++how) {
    const auto model = nn::make<Refilled>(how);
    model->eval();
    Executor run = build(create_schedule(model, {{"x", x}}));
    manual_seed(7);
    const Tensor first = model(x);
    const Tensor second = model(x);
    manual_seed(7);
    EXPECT_EQ(max_difference(run(x), first), 0) << how;
    EXPECT_EQ(max_difference(run(x), second), 0) << how;
    EXPECT_EQ(max_difference(model->noise, second.narrow(0, 0, 1).view({6})), 0) << how;
    EXPECT_GT(max_difference(first, second), 0) << how;
  }
}

TEST_F(RandomNodes, WhatCannotBeRecordedIsRefusedWithTheRemedy) {
  Generator generator(1);
  const Tensor weight = zeros({4, 4});
  const auto refusal = [](const UnaryModel& model) {
    return test::error_text<TraceError>([&] {
      create_schedule(function_model(model), {{"x", ones({4})}});
    });
  };
  EXPECT_EQ(
      refusal([&](const Tensor& x) { return x + randn({4}, {}, &generator); }),
      "[randn] was given a generator inside a trace: a Graph draws from the generator of each "
      "run, new numbers every time; leave it out, or draw outside of the trace and pass the "
      "tensor in");
  EXPECT_NE(refusal([&](const Tensor& x) {
              return x + uniform({4}, 0, 1, {}, &generator);
            }).find("[uniform] was given a generator"),
            std::string::npos);
  EXPECT_EQ(
      refusal([](const Tensor& x) {
        manual_seed(3);
        return x + randn({4});
      }),
      "[manual_seed] the default generator was changed inside a trace, which would happen once "
      "and not at each run; change it before the run");
  EXPECT_NE(refusal([](const Tensor& x) {
              default_generator().set_forward(3);
              return x + randn({4});
            }).find("[set_forward]"),
            std::string::npos);
  EXPECT_NE(refusal([&](const Tensor& x) {
              nn::init::trunc_normal_(weight);
              return x + weight.narrow(0, 0, 1).view({4});
            }).find("[trunc_normal_] called inside a trace"),
            std::string::npos);
  EXPECT_NE(refusal([](const Tensor& x) {
              return uniform({1}, 0, 1).item() < 0.5 ? x : x * 2.0;
            }).find("item() under the tracer"),
            std::string::npos);
}

TEST_F(RandomNodes, AGeneratorThatTheForwardMakesDrawsConstants) {
  Generator outer(1);
  const auto model = function_model([&](const Tensor& x) {
    Generator own(5);
    outer.manual_seed(6);
    return x + randn({6}, {}, &own) + uniform({6}, 0, 1, {}, &own) * randn({6}, {}, &outer);
  });
  const Tensor x = zeros({2, 6});
  Executor run = build(create_schedule(model, {{"x", x}}));
  EXPECT_EQ(test::count_nodes(run.graph(), "randn"), 0);
  EXPECT_EQ(max_difference(model(x), model(x)), 0);
  EXPECT_EQ(max_difference(run(x), model(x)), 0);
  EXPECT_EQ(max_difference(run(x), model(x)), 0);
}

TEST_F(RandomNodes, ATraceLeavesTheGeneratorAndTheSitesOfACallAlone) {
  const auto inner = function_model([](const Tensor& x) { return x + randn(x.shape()); });
  // A model that builds its Program when it is first called.
  std::optional<Executor> run;
  const auto lazy = function_model([&](const Tensor& x) {
    const Tensor first = x + randn(x.shape());
    if (!run) run.emplace(build(create_schedule(inner, {{"x", x}}), {.verify = false}));
    return first + randn(x.shape());
  });
  const Tensor x = zeros({2, 6});
  manual_seed(12);
  const Tensor building = lazy(x);
  manual_seed(12);
  EXPECT_EQ(max_difference(lazy(x), building), 0);
  manual_seed(12);
  const Tensor eager = inner(x);
  manual_seed(12);
  EXPECT_EQ(max_difference(run->run(std::span(&x, 1), true)[0], eager), 0);
}

}  // namespace random_nodes_test
}  // namespace tenon
