// Random numbers where several threads draw: none is drawn twice, and under a GeneratorScope a
// thread draws what it would draw alone.
#include <gtest/gtest.h>

#include <latch>
#include <set>
#include <thread>
#include <vector>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"
#include "tests/tensor/threads.h"

namespace tenon::test {
namespace generator_test {

void in_thread(const std::function<void()>& f) { std::thread(f).join(); }

TEST(GeneratorThreads, ForwardsOfSeveralThreadsShareNoNumber) {
  Generator generator(3);
  std::vector<std::vector<std::uint32_t>> drawn(4);
  std::vector<std::thread> threads;
  for (auto& own : drawn) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) own.push_back(generator.next_forward().forward);
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<std::uint32_t> numbers;
  for (const auto& own : drawn) numbers.insert(own.begin(), own.end());
  EXPECT_EQ(numbers.size(), 2000U);
}

TEST(GeneratorThreads, DropoutsOutsideOfModulesShareNoMask) {
  manual_seed(11);
  std::vector<std::vector<std::string>> masks(4);
  std::vector<std::thread> threads;
  for (std::size_t k = 0; k < masks.size(); ++k) {
    threads.emplace_back([&, k] {
      const auto drop = nn::make<nn::Dropout>(0.5);
      for (int i = 0; i < 100; ++i) {
        masks[k].push_back(bytes_of(k % 2 == 0 ? dropout(ones({256}), 0.5) : drop(ones({256}))));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<std::string> all;
  for (const auto& own : masks) all.insert(own.begin(), own.end());
  EXPECT_EQ(all.size(), 400U);
  manual_seed(0);
}

TEST(GeneratorThreads, AForwardUnderWayKeepsItsNumber) {
  const auto run = [](bool disturbed) {
    manual_seed(5);
    const auto model = function_model([&](const Tensor& x) {
      const Tensor y = dropout(x, 0.5);
      if (disturbed) in_thread([] { nn::make<nn::Dropout>(0.5)(ones({8})); });
      return dropout(y + 1.0, 0.5) + randn(x.shape());
    });
    return bytes_of(model(ones({64})));
  };
  EXPECT_EQ(run(true) == run(false), true);
  manual_seed(0);
}

TEST(GeneratorThreads, ASeedGivenInAForwardHoldsFromThereOn) {
  const auto seeded = [](std::uint64_t before) {
    manual_seed(before);
    const auto model = function_model([](const Tensor& x) {
      manual_seed(77);
      return dropout(x, 0.5);
    });
    return bytes_of(model(ones({64})));
  };
  EXPECT_EQ(seeded(1) == seeded(2), true);
  manual_seed(0);
}

TEST(GeneratorThreads, ARefusedCallGivesBackNothingThatOthersFollowed) {
  manual_seed(9);
  std::string other;
  // The operand is looked at after the numbers were taken; another thread draws in between.
  struct Between final : Interpreter {
    std::vector<Tensor> apply(const Op& op, std::span<const Tensor>, const Attrs&) override {
      draw();
      throw ValueError(op.name + " was refused");
    }
    std::function<void()> draw;
  } between;
  between.draw = [&] { in_thread([&] { other = bytes_of(dropout(ones({256}), 0.5)); }); };
  {
    const InterpreterGuard guard(between);
    EXPECT_THROW(dropout(ones({256}), 0.5), ValueError);
  }
  EXPECT_EQ(bytes_of(dropout(ones({256}), 0.5)) == other, false);
  manual_seed(0);
}

/// What a thread may do with random numbers.
struct Drawing {
  std::string name;
  std::function<std::string()> draw;
};

std::vector<Drawing> drawings() {
  const auto model = nn::make<ResidualMlp>(8);
  const auto optimizer =
      std::make_shared<nn::SGD>(model->named_parameters(), nn::SgdOptions{.lr = 0});
  const Tensor x = ones({4, 8});
  const auto sch = create_schedule(model, {{"x", x}});
  const auto executor = std::make_shared<Executor>(build(sch));
  const auto step = std::make_shared<TrainingStep>(build_training(
      sch, {.loss = [](auto y, auto) { return mean(y[0] * y[0]); }, .optimizer = optimizer}));
  const auto leaf = [] { return ones({64}).requires_grad_(); };
  return {{"randn", [] { return bytes_of(randn({32})); }},
          {"dropout", [] { return bytes_of(dropout(ones({64}), 0.5)); }},
          {"module", [=] { return bytes_of(model(x)); }},
          {"Executor", [=] { return bytes_of(executor->run(std::span(&x, 1), true).at(0)); }},
          {"TrainingStep", [=] { return bytes_of(step->run({x}).loss); }},
          {"backward of dropout", [=] {
             const Tensor y = leaf();
             backward(dropout(y, 0.5), ones({64}));
             return bytes_of(y.grad());
           }}};
}

TEST(GeneratorScopes, AThreadDrawsAsIfItWereAlone) {
  for (const Drawing& drawing : drawings()) {
    const auto three = [&](const std::function<void()>& between) {
      Generator generator(21);
      const GeneratorScope scope(generator);
      std::string bytes;
      for (int i = 0; i < 3; ++i) {
        bytes += drawing.draw();
        between();
      }
      return bytes;
    };
    const std::string alone = three([] {});
    const std::string beside = three([&] {
      in_thread([] {
        randn({8});
        dropout(ones({8}), 0.5);
        manual_seed(99);
        nn::make<nn::Dropout>(0.5)(ones({8}));
      });
    });
    EXPECT_EQ(alone == beside, true) << drawing.name;
    Generator other(22);
    const GeneratorScope scope(other);
    EXPECT_EQ(alone.starts_with(drawing.draw()), false)
        << drawing.name << ": it depends on the seed";
  }
  manual_seed(0);
}

TEST(GeneratorScopes, NestAndEnd) {
  Generator* const process = &default_generator();
  Generator a(1);
  Generator b(2);
  {
    const GeneratorScope outer(a);
    {
      const GeneratorScope inner(b);
      EXPECT_EQ(&default_generator(), &b);
      in_thread([&] { EXPECT_EQ(&default_generator(), process) << "another thread's is its own"; });
    }
    EXPECT_EQ(&default_generator(), &a);
    manual_seed(6);
    EXPECT_EQ(a.seed(), 6U);
  }
  EXPECT_EQ(&default_generator(), process);
}

TEST(GeneratorScopes, InsideATraceIsRefused) {
  const auto model = function_model([](const Tensor& x) {
    Generator generator(1);
    const GeneratorScope scope(generator);
    return dropout(x, 0.5);
  });
  EXPECT_ERROR(
      TraceError,
      "[GeneratorScope] was opened inside a trace: a Graph draws from the generator of each "
      "run; open it around the run",
      create_schedule(model, {{"x", ones({4})}}));
}

}  // namespace generator_test
}  // namespace tenon::test
