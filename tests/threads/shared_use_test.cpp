// What several threads may use at once gives each of them what one thread gets: modules whose
// parameters they share, one Graph lowered for many sizes, Programs, Executors beside a schedule
// that goes on.
#include <gtest/gtest.h>

#include <latch>
#include <thread>
#include <vector>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/random.h"
#include "tests/support/models.h"
#include "tests/tensor/threads.h"

namespace tenon::test {
namespace shared_use_test {

/// Runs f(i) on this thread for each i, then on `threads` threads at once, and compares.
void expect_same_at_once(int threads, const std::function<std::string(int)>& f) {
  std::vector<std::string> expected;
  for (int i = 0; i < threads; ++i) expected.push_back(f(i));
  std::latch start(threads);
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      start.arrive_and_wait();
      for (int round = 0; round < 5; ++round) {
        EXPECT_EQ(f(i) == expected[static_cast<std::size_t>(i)], true) << "thread " << i;
      }
    });
  }
  for (std::thread& thread : running) thread.join();
}

Tensor sample(int i) {
  Generator generator(static_cast<std::uint64_t>(i) + 1);
  return randn({2 + i, 3, 16}, {}, &generator);
}

TEST(SharedUse, GradientsByOneModelsParameters) {
  const auto model = nn::make<EncoderLayer>(16, 2);
  expect_same_at_once(4, [&](int i) {
    Generator generator(7);
    const GeneratorScope scope(generator);
    std::vector<Tensor> wanted;
    for (const auto& [name, parameter] : model->named_parameters()) wanted.push_back(parameter);
    const Tensor loss = sum(square(model(sample(i))));
    std::string bytes;
    for (const Tensor& g : grad(std::span(&loss, 1), wanted)) bytes += bytes_of(g.contiguous());
    return bytes;
  });
}

TEST(SharedUse, BackwardIntoLeavesOfTheirOwnThroughSharedOnes) {
  const auto model = nn::make<EncoderLayer>(16, 2);
  model->requires_grad_(false);
  expect_same_at_once(4, [&](int i) {
    Generator generator(7);
    const GeneratorScope scope(generator);
    const Tensor x = sample(i).requires_grad_();
    backward(sum(square(model(x))));
    return bytes_of(x.grad());
  });
}

TEST(SharedUse, TracesAndBuildsOfDifferentModels) {
  expect_same_at_once(3, [&](int i) {
    Generator generator(static_cast<std::uint64_t>(i));
    const GeneratorScope scope(generator);
    const auto model = nn::make<EncoderLayer>(16, 2);
    Schedule sch = create_schedule(model, {{"x", sample(i)}});
    sch.fuse_parallel(sch.find("query|key|value"));
    Executor run = build(sch, {.verify = i == 0});
    return to_text(run.graph()) + bytes_of(run(sample(i)));
  });
}

TEST(SharedUse, TracesOfOneModel) {
  const auto model = nn::make<EncoderLayer>(16, 2);
  expect_same_at_once(4, [&](int i) {
    return to_text(create_schedule(model, {{"x", sample(i % 2)}}).graph());
  });
}

TEST(SharedUse, OneGraphLoweredForManySizes) {
  const auto model = nn::make<EncoderLayer>(16, 2);
  const Schedule sch = create_schedule(model, {{"x", sample(0)}});
  const Graph& graph = sch.graph();
  expect_same_at_once(4, [&](int i) {
    const Tensor x = sample(i);
    const auto program = lower(graph, {x.spec()});
    return program->to_string() + bytes_of(program->run(std::span(&x, 1)).at(0));
  });
}

TEST(SharedUse, OneProgramFromSeveralThreads) {
  const auto model = nn::make<EncoderLayer>(16, 2);
  const Schedule sch = create_schedule(model, {{"x", sample(0)}});
  const Tensor x = sample(1);
  const auto program = lower(sch.graph(), {x.spec()});
  expect_same_at_once(4, [&](int i) {
    const Tensor y = x + static_cast<double>(i);
    const std::size_t captures = program->num_captures();
    return bytes_of(program->run(std::span(&y, 1)).at(0)) + std::to_string(captures);
  });
}

struct ConvolutionNet : nn::Module {
  ConvolutionNet()
      : convolution(add<nn::Conv2d>("convolution", 3, 8, 3)),
        norm(add<nn::BatchNorm2d>("norm", 8)),
        head(add<nn::Linear>("head", 8, 10)) {}
  Tensor forward(const Tensor& x) const {
    return head(mean(max_pool2d(relu(norm(convolution(x))), {2, 2}, {2, 2}), {2, 3}));
  }
  nn::Child<nn::Conv2d> convolution;
  nn::Child<nn::BatchNorm2d> norm;
  nn::Child<nn::Linear> head;
};

TEST(SharedUse, StatisticsAreReadByAllInEvaluation) {
  const auto model = nn::make<ConvolutionNet>();
  model->eval();
  const auto image = [](int i) {
    Generator generator(static_cast<std::uint64_t>(i));
    return randn({1 + i % 3, 3, 12 + i, 20 - i % 7}, {}, &generator);
  };
  Executor run = build(create_schedule(model, {{"x", image(0)}}));
  expect_same_at_once(4, [&](int i) {
    std::string bytes;
    for (int k = 0; k < 12; ++k) bytes += bytes_of(run(image((5 * i + k) % 20)));
    return bytes + bytes_of(model(image(i)));
  });
}

TEST(SharedUse, AnExecutorRunsWhileItsScheduleGoesOn) {
  const auto model = nn::make<EncoderLayer>(16, 2);
  Schedule sch = create_schedule(model, {{"x", sample(0)}});
  Executor run = build(sch, {.verify = false});
  std::vector<std::string> expected;
  for (int i = 0; i < 30; ++i) expected.push_back(bytes_of(run(sample(i))));
  std::atomic<bool> done = false;
  std::jthread other([&] {
    while (!done) {
      for (int i = 0; i < 30; ++i) {
        EXPECT_EQ(bytes_of(run(sample(i))) == expected[static_cast<std::size_t>(i)], true) << i;
      }
    }
  });
  EXPECT_NO_THROW(for (int round = 0; round < 6; ++round) {
    sch["up"].decompose();
    sch.trace({.flatten = true});
    EXPECT_FALSE(sch.find([](const Tensor& a, const Tensor& b) { return matmul(a, b); }).empty());
    build_training(sch, {.loss = [](auto y, auto) { return mean(y[0]); }, .verify = false});
    sch.undo();
    sch.undo();
  });
  done = true;
}

TEST(SharedUse, TrainingStepsOfDifferentModels) {
  expect_same_at_once(3, [](int i) {
    Generator generator(static_cast<std::uint64_t>(i));
    const GeneratorScope scope(generator);
    const auto model = nn::make<ResidualMlp>(16);
    const auto sch = create_schedule(model, {{"x", sample(i)}});
    TrainingStep step =
        build_training(sch, {.loss = [](auto y, auto) { return mean(square(y[0])); },
                             .optimizer = std::make_shared<nn::AdamW>(model->named_parameters()),
                             .verify = false});
    std::string losses;
    for (int k = 0; k < 4; ++k) losses += bytes_of(step.run({sample(i)}).loss);
    return losses;
  });
}

TEST(SharedUse, HandlesAreCopiedAndDroppedByAll) {
  const Tensor x = sample(1);
  expect_same_at_once(4, [&](int) {
    std::vector<Tensor> copies;
    for (int k = 0; k < 200; ++k) copies.push_back(k % 2 == 0 ? x : x.transpose(0, 1));
    return bytes_of(copies.back().contiguous()) + std::to_string(x.storage()->version());
  });
}

}  // namespace shared_use_test
}  // namespace tenon::test
