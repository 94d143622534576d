// Lowering and running: layouts, memory planning, state, packing, and what a Program refuses.
#include <gtest/gtest.h>

#include "graph/memory_plan.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/device_backend.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

TEST(MemoryPlan, SharesMemoryOfBuffersThatNeverMeet) {
  const MemoryPlan plan = plan_memory({{1024, 0, 1}, {512, 1, 2}, {1024, 2, 3}});
  EXPECT_EQ(plan.offsets[0], plan.offsets[2]);
  EXPECT_EQ(plan.arena_bytes, 1536U);
  EXPECT_EQ(plan.live_bound_bytes, 1536U);
}

TEST(MemoryPlan, NeverOverlapsLiveBuffers) {
  std::uint64_t state = 20261122;
  const auto next = [&](std::uint64_t n) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<int>((state >> 33) % n);
  };
  for (int round = 0; round < 50; ++round) {
    std::vector<BufferLifetime> buffers;
    for (int i = 0; i < 40; ++i) {
      const int first = next(60);
      buffers.push_back({static_cast<std::size_t>(1 + next(5000)), first, first + next(12)});
    }
    const MemoryPlan plan = plan_memory(buffers);
    EXPECT_GE(plan.arena_bytes, plan.live_bound_bytes);
    for (std::size_t a = 0; a < buffers.size(); ++a) {
      for (std::size_t b = a + 1; b < buffers.size(); ++b) {
        const bool meet =
            buffers[a].first <= buffers[b].last && buffers[b].first <= buffers[a].last;
        const bool apart = plan.offsets[a] + buffers[a].bytes <= plan.offsets[b] ||
                           plan.offsets[b] + buffers[b].bytes <= plan.offsets[a];
        EXPECT_TRUE(!meet || apart) << "round " << round << ", buffers " << a << ", " << b;
      }
    }
  }
}

/// Layers that keep an activation for backward, each with short-lived results and workspaces around it.
std::vector<BufferLifetime> lifetimes_of_training(int layers) {
  const int end = 8 * layers;
  std::vector<BufferLifetime> buffers;
  for (int layer = 0; layer < layers; ++layer) {
    const int forward = 4 * layer;
    const int backward = end - 4 * (layer + 1);
    buffers.push_back({3 << 20, forward, backward + 2});
    buffers.push_back({1 << 20, forward + 1, backward + 1});
    buffers.push_back({4 << 20, forward + 2, forward + 3});
    buffers.push_back({5000, forward, forward});
    buffers.push_back({4 << 20, backward, backward + 1});
    buffers.push_back({(1 << 20) + 512, backward + 1, backward + 4});
    buffers.push_back({300, backward, end});
  }
  return buffers;
}

TEST(MemoryPlan, IsWithinATenthOfTheBound) {
  for (const int layers : {1, 2, 3, 12, 48}) {
    const MemoryPlan plan = plan_memory(lifetimes_of_training(layers));
    EXPECT_LE(static_cast<double>(plan.arena_bytes),
              1.1 * static_cast<double>(plan.live_bound_bytes))
        << layers << " layers";
  }
}

TEST(MemoryPlan, KnowsWhereTheMostIsLive) {
  const MemoryPlan plan = plan_memory({{1024, 0, 1}, {512, 1, 2}, {4096, 3, 3}});
  EXPECT_EQ(plan.peak, 3);
}

struct ProgramCase {
  const char* name;
  Tensor (*function)(const Tensor&);
};

Tensor view_of_permuted(const Tensor& x) {
  const Tensor y = x.permute({1, 0, 2}) * 2.0;
  return y.reshape({y.size(0), -1});
}
Tensor returns_input(const Tensor& x) { return x; }
Tensor returns_view(const Tensor& x) { return (x + 1.0).transpose(0, 2); }
Tensor slices(const Tensor& x) {
  const auto parts = split(x * 3.0, 2, 2);
  return parts[0] + parts[1];
}
Tensor broadcasts(const Tensor& x) { return x + sum(x, {0}, true).expand({x.size(0), -1, -1}); }
Tensor concatenates(const Tensor& x) { return cat({x, x * 2.0, x}, 1); }
Tensor decomposed_attention(const Tensor& x) {
  return scaled_dot_product_attention(x, x, x, {}, {.is_causal = true});
}

class ProgramMatchesEager : public ::testing::TestWithParam<ProgramCase> {};

TEST_P(ProgramMatchesEager, OnSeveralSizes) {
  const auto model = function_model(GetParam().function);
  const Schedule sch = create_schedule(model, {randn({3, 5, 4})});
  Executor run(sch.graph());
  for (const auto& shape : {Shape{3, 5, 4}, Shape{1, 1, 4}, Shape{7, 2, 4}}) {
    const Tensor x = randn(shape);
    const Tensor eager = model(x);
    const Tensor result = run(x);
    EXPECT_EQ(result.shape().to_string(), eager.shape().to_string());
    EXPECT_EQ(max_difference(result, eager), 0) << shape.to_string();
  }
}

INSTANTIATE_TEST_SUITE_P(All, ProgramMatchesEager,
                         ::testing::Values(ProgramCase{"view_of_permuted", view_of_permuted},
                                           ProgramCase{"returns_input", returns_input},
                                           ProgramCase{"returns_view", returns_view},
                                           ProgramCase{"slices", slices},
                                           ProgramCase{"broadcasts", broadcasts},
                                           ProgramCase{"concatenates", concatenates},
                                           ProgramCase{"causal_attention", decomposed_attention}),
                         [](const auto& info) { return info.param.name; });

TEST(Program, OutputsBelongToTheCaller) {
  const auto model = function_model(returns_input);
  Executor run(create_schedule(model, {randn({2, 3, 4})}).graph());
  const Tensor x = randn({2, 3, 4});
  const Tensor first = run(x);
  EXPECT_NE(first.storage(), x.storage());
  const auto before = first.to_vector<float>();
  run(randn({2, 3, 4}));
  EXPECT_EQ(first.to_vector<float>(), before);
}

TEST(Program, NonContiguousInputsAreTaken) {
  const auto model = function_model([](const Tensor& x) { return x * 2.0; });
  Executor run(create_schedule(model, {randn({4, 3})}).graph());
  const Tensor x = randn({3, 4}).transpose(0, 1);
  EXPECT_EQ(max_difference(run(x), x * 2.0), 0);
}

TEST(Program, ReadsParametersAtRunTimeAndNoticesMoves) {
  const auto model = nn::make<nn::Linear>(4, 4);
  Executor run(create_schedule(model, {randn({2, 4})}).graph());
  const Tensor x = randn({2, 4});
  run(x);
  Tensor weight = model->weight;
  const NoGradGuard no_grad;
  weight.copy_(zeros({4, 4}));
  EXPECT_LT(max_difference(run(x), model->bias.unsqueeze(0).expand({2, 4})), 1e-7);
  model->to(DType::float64);
  EXPECT_ERROR(StaleProgram,
               "parameter 'weight' was moved (by to() or another packing) after this program was "
               "built; build again",
               run(x));
}

TEST(Program, RefusesOtherInputs) {
  const auto model = nn::make<nn::Linear>(4, 4);
  Executor run(create_schedule(model, {{"x", randn({2, 4})}}).graph());
  EXPECT_ERROR(ShapeError, "[lower] input 'x' has shape (4,); traced with (s0, 4)",
               run(randn({4})));
  EXPECT_ERROR(DTypeError, "[lower] input 'x' is float64; traced with float32",
               run(randn({2, 4}, {DType::float64, kCpu})));
  EXPECT_ERROR(ShapeError, "[lower] 2 inputs were given; the graph has 1",
               run(randn({2, 4}), randn({2, 4})));
}

TEST(Program, ReusesMemory) {
  const auto model = function_model([](const Tensor& x) {
    Tensor y = x;
    for (int i = 0; i < 10; ++i) y = exp(y) * 0.1;
    return y;
  });
  Executor run(create_schedule(model, {randn({8})}).graph());
  const Tensor x = randn({1024});
  const Tensor inputs[] = {x};
  Program& program = run.program(inputs);
  EXPECT_EQ(program.instructions().size(), 20U);
  EXPECT_LE(program.arena_bytes(), 2 * 4096U);
  EXPECT_EQ(program.count_kernels(inputs), 20);
}

struct TwoParts : nn::Module {
  TwoParts(std::int64_t second_start, std::int64_t second_length)
      : start(second_start), length(second_length) {}
  std::vector<Tensor> forward(const Tensor& x) const {
    const Tensor y = x * 2.0;
    return {y.narrow(0, 0, 3), y.narrow(0, start, length)};
  }
  std::int64_t start, length;
};

TEST(Program, PartsOfOneResultLeaveItTogether) {
  const Tensor x = randn({6, 5});
  const std::span<const Tensor> inputs(&x, 1);
  struct Sample {
    std::int64_t start, length;
    std::size_t instructions;  // parts that overlap, or are not all, are copied
  };
  for (const Sample& sample : {Sample{3, 3, 1}, Sample{2, 4, 3}, Sample{3, 2, 3}}) {
    const auto model = nn::make<TwoParts>(sample.start, sample.length);
    Executor run(create_schedule(model, {{"x", x}}).graph());
    const auto outputs = run.run(inputs);
    EXPECT_EQ(run.program(inputs).instructions().size(), sample.instructions);
    EXPECT_EQ(max_difference(outputs[0], x.narrow(0, 0, 3) * 2.0), 0);
    EXPECT_EQ(max_difference(outputs[1], x.narrow(0, sample.start, sample.length) * 2.0), 0);
  }
}

/// One batch norm twice, and its statistics as results: themselves, computed with, and as a view.
struct ReturnedStatistics : nn::Module {
  ReturnedStatistics() : norm(add<nn::BatchNorm2d>("norm", 4)) {}
  std::vector<Tensor> forward(const Tensor& x) const {
    const Tensor y = norm(norm(x) * 2.0);
    return {y, norm->running_mean, norm->running_mean + 1.0, norm->running_var.view({2, 2})};
  }
  nn::Child<nn::BatchNorm2d> norm;
};

TEST(Program, ReturnsStatisticsAsEagerCodeDoes) {
  const NoGradGuard no_grad;
  for (const bool training : {false, true}) {
    const auto eager = nn::make<ReturnedStatistics>();
    const auto traced = nn::make<ReturnedStatistics>();
    eager->train(training);
    traced->train(training);
    const Tensor x = randn({6, 4, 3, 2});
    Executor run(create_schedule(traced, {x}).graph());
    for (int i = 0; i < 3; ++i) {
      const std::vector<Tensor> expected = eager(x);
      const std::vector<Tensor> got = run.run(std::span(&x, 1), training);
      for (std::size_t k = 0; k < got.size(); ++k) {
        EXPECT_LT(max_difference(got[k], expected[k]), 1e-5) << training << ", result " << k;
      }
      EXPECT_NE(got[1].storage(), traced->norm->running_mean.storage());
      EXPECT_LT(max_difference(traced->norm->running_var, eager->norm->running_var), 1e-5);
    }
  }
}

TEST(Program, StateThatEvaluationHandsBackIsNotWritten) {
  const auto norm = nn::make<nn::BatchNorm2d>(3);
  const Tensor x = randn({4, 3, 5, 6});
  const std::span<const Tensor> inputs(&x, 1);
  Executor run(create_schedule(norm, {x}).graph());
  const auto versions = [&] {
    return std::vector<std::uint64_t>{norm->running_mean.storage()->version(),
                                      norm->running_var.storage()->version()};
  };
  const auto before = versions();
  const std::vector<double> mean = norm->running_mean.to_doubles();
  norm->eval();
  EXPECT_EQ(max_difference(run.run(inputs)[0], norm(x)), 0);
  EXPECT_EQ(run.program(inputs).instructions().size(), 1U) << "no copies of statistics";
  EXPECT_EQ(versions(), before);
  EXPECT_EQ(norm->running_mean.to_doubles(), mean);
  run.run(inputs, /*training=*/true);
  EXPECT_NE(versions(), before);
  EXPECT_NE(norm->running_mean.to_doubles(), mean);
}

TEST(Executor, KeepsABoundedNumberOfPrograms) {
  const auto model = function_model([](const Tensor& x) { return x + 1.0; });
  Executor run(create_schedule(model, {randn({8})}).graph());
  for (int n = 1; n <= 40; ++n) run(randn({n}));
  EXPECT_EQ(run.num_programs(), Executor::kMaxPrograms);
}

/// Filters that lie otherwise than the kernel takes them, for two convolutions.
struct PermutedFilters : nn::Module {
  PermutedFilters() : filters(register_parameter("filters", randn({3, 3, 2, 2}))) {}
  Tensor forward(const Tensor& x) const {
    const Tensor f = filters.permute({3, 2, 0, 1});
    return conv2d(conv2d(x, f), f);
  }
  Tensor filters;
};

TEST(Program, CopiesOfStateAreMadeOnceUntilItChanges) {
  const auto model = nn::make<PermutedFilters>();
  const Tensor x = randn({1, 2, 7, 7});
  Executor run(create_schedule(model, {x}).graph());
  const auto expect_eager = [&](const char* when) {
    const Tensor y = run(x);
    EXPECT_EQ(y.to_doubles(), model(x).to_doubles()) << when;
    EXPECT_EQ(run(x).to_doubles(), y.to_doubles()) << when;
  };
  expect_eager("at first");
  int copies = 0;
  for (const InstructionInfo& info : run.program(std::span(&x, 1)).instructions()) {
    copies += info.kernel == "cpu.copy" ? 1 : 0;
  }
  EXPECT_EQ(copies, 1) << run.program(std::span(&x, 1)).to_string();
  const NoGradGuard no_grad;
  model->filters.copy_(randn({3, 3, 2, 2}));
  expect_eager("after a write");
  model->filters.narrow(0, 0, 1).mul_(2.0);
  expect_eager("after a write to a view");
  model->filters.transpose(2, 3).zero_();
  expect_eager("after zero_");
}

TEST(Program, AStepThatWritesStateCopiesItAnew) {
  const auto model = nn::make<PermutedFilters>();
  model->requires_grad_();
  const Tensor x = randn({1, 2, 7, 7});
  Executor evaluate(create_schedule(model, {x}).graph());
  evaluate(x);
  auto step = build_training(create_schedule(model, {x}),
                             {.loss = [](auto y, auto) { return mean(square(y[0])); },
                              .optimizer = std::make_shared<nn::SGD>(model->named_parameters(),
                                                                     nn::SgdOptions{.lr = 0.01}),
                              .verify = false});
  double before = step.run({x}).loss.item();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(evaluate(x).to_doubles(), model(x).to_doubles()) << "after step " << i;
    const double after = step.run({x}).loss.item();
    EXPECT_LT(after, before);
    before = after;
  }
}

TEST(Executor, StatesItsMemoryAndSharesTheModelsWeights) {
  const auto model = nn::make<nn::Linear>(256, 512);
  const Tensor x = randn({4, 256});
  const Schedule sch = create_schedule(model, {x});
  DeviceBackend& backend = device_backend(DeviceType::cpu);
  const std::size_t before = backend.memory_stats(0).live;
  std::vector<Executor> executors;
  for (int i = 0; i < 3; ++i) {
    executors.emplace_back(sch.graph());
    for (const std::int64_t rows : {4, 9}) executors.back()(randn({rows, 256}));
  }
  std::size_t stated = 0;
  for (Executor& run : executors) {
    EXPECT_EQ(run.num_programs(), 2U);
    const Tensor wide = randn({9, 256});
    EXPECT_EQ(run.arena_bytes(), run.program(std::span(&x, 1)).arena_bytes() +
                                     run.program(std::span(&wide, 1)).arena_bytes());
    stated += run.arena_bytes();
  }
  EXPECT_EQ(backend.memory_stats(0).live - before, stated) << "nothing but the arenas was added";
  Executor copy = executors[0];
  copy(randn({5, 256}));
  EXPECT_EQ(executors[0].num_programs(), 3U) << "a copy shares the Programs";
}

}  // namespace
}  // namespace tenon
