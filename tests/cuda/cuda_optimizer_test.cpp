// adam_step, sgd_step and global_norm on CUDA against the CPU, for every pair of dtypes, sizes around a
// block, unaligned operands and more tensors than one table holds; and whole optimizers, clipping
// included, eager and in captured steps.
#include <cstdlib>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "schedule/training.h"
#include "tensor/ops/optimizer_steps.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/compare.h"

namespace tenon::test {
namespace cuda_optimizer_test {

struct Sample {
  DType param;
  DType grad;
  double tolerance;
};
constexpr Sample kSamples[] = {
    {DType::float64, DType::float64, 1e-14}, {DType::float32, DType::float32, 2e-6},
    {DType::float32, DType::float16, 2e-6},  {DType::float32, DType::bfloat16, 2e-6},
    {DType::float16, DType::float16, 4e-3},  {DType::bfloat16, DType::bfloat16, 4e-2}};
constexpr std::int64_t kSizes[] = {0, 1, 3, 4, 1023, 1025, 8192, 8193, 300001};

/// `n` numbers that begin at the first or, unaligned, at the second element of their memory.
Tensor numbers(std::int64_t n, DType dtype, bool unaligned, double low, Generator& generator,
               Device device) {
  const Tensor base = uniform({n + 1}, low, 2, {dtype}, &generator).to(device);
  return base.narrow(0, unaligned ? 1 : 0, n);
}

void expect_near(const std::vector<Tensor>& actual, const std::vector<Tensor>& expected,
                 double tolerance) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_LE(max_difference(actual[i], expected[i]), tolerance) << "result " << i;
  }
}

std::vector<Tensor> adam(const Sample& sample, std::int64_t n, bool unaligned, Device device) {
  Generator generator(1);
  const auto make = [&](DType dtype, double low) {
    return numbers(n, dtype, unaligned, low, generator, device);
  };
  const Tensor param = make(sample.param, -2), grad = make(sample.grad, -2);
  const Tensor avg = make(sample.param, -2), avg_sq = make(sample.param, 0.1);
  const auto scalar = [&](double value) { return full({}, value, {DType::float32, device}); };
  const UpdatedParameter r =
      adam_step({{param, grad, scalar(3), {avg, avg_sq}}}, scalar(0.0625), scalar(0.5),
                {0.8, 0.95, 1e-6, 0.125, unaligned, {}, RoundedCopy::bfloat16})
          .at(0);
  EXPECT_EQ(max_difference(r.copy, r.param.to(DType::bfloat16)), 0);
  return {r.param, r.state[0], r.state[1]};
}

std::vector<Tensor> sgd(const Sample& sample, std::int64_t n, bool unaligned, bool momentum,
                        double step, Device device) {
  Generator generator(2);
  const auto make = [&](DType dtype) {
    return numbers(n, dtype, unaligned, -2, generator, device);
  };
  const Tensor param = make(sample.param), grad = make(sample.grad), buffer = make(sample.param);
  const auto scalar = [&](double value) { return full({1}, value, {DType::float32, device}); };
  SgdAttrs attrs{.weight_decay = 0.125};
  if (!momentum) {
    return {sgd_step({{param, grad, scalar(step), {}}}, scalar(0.0625), Tensor(), attrs)[0].param};
  }
  attrs.momentum = 0.9;
  attrs.nesterov = unaligned;
  const UpdatedParameter r =
      sgd_step({{param, grad, scalar(step), {buffer}}}, scalar(0.0625), scalar(0.5), attrs).at(0);
  return {r.param, r.state[0]};
}

TEST(CudaOptimizer, StepsMatchTheCpu) {
  SKIP_WITHOUT_GPU();
  for (const Sample& sample : kSamples) {
    for (const std::int64_t n : kSizes) {
      for (const bool unaligned : {false, true}) {
        SCOPED_TRACE(std::string(name(sample.param)) + " with a gradient of " +
                     std::string(name(sample.grad)) + ", " + std::to_string(n) +
                     (unaligned ? " unaligned" : ""));
        expect_near(adam(sample, n, unaligned, kCuda), adam(sample, n, unaligned, kCpu),
                    sample.tolerance);
        for (const double step : {1, 2}) {
          expect_near(sgd(sample, n, unaligned, true, step, kCuda),
                      sgd(sample, n, unaligned, true, step, kCpu), sample.tolerance);
        }
        expect_near(sgd(sample, n, unaligned, false, 1, kCuda),
                    sgd(sample, n, unaligned, false, 1, kCpu), sample.tolerance);
      }
    }
  }
}

/// More parameters than one table holds, of odd sizes and two kinds, with everything on `device`.
std::vector<ParameterUpdate> many_updates(Device device) {
  std::vector<ParameterUpdate> updates;
  Generator generator(4);
  for (std::int64_t i = 0; i < 701; ++i) {
    const std::int64_t n = i % 50 == 7 ? 0 : i % 50 == 8 ? 20000 + i : 1 + i;
    const auto make = [&](double low, DType dtype = DType::float32) {
      return numbers(n, dtype, i % 4 == 3, low, generator, device);
    };
    const Tensor param = make(-2);
    const Tensor grad = make(-2, i % 3 == 1 ? DType::float32 : DType::bfloat16);
    const Tensor count = full({1}, static_cast<double>(1 + i % 9), {DType::float32, device});
    updates.push_back({param, grad, count, {make(-2), make(0.1)}});
  }
  return updates;
}

TEST(CudaOptimizer, ManyParametersMatchTheCpuAndAreBitEqualFromRunToRun) {
  SKIP_WITHOUT_GPU();
  AdamAttrs attrs{.weight_decay = 0.125, .decoupled = true, .copies = RoundedCopy::float16};
  for (std::int64_t i = 0; i < 701; i += 3) attrs.no_decay.push_back(i);
  const auto run = [&](Device device) {
    const auto scalar = [&](double value) { return full({}, value, {DType::float32, device}); };
    std::vector<Tensor> results;
    for (const UpdatedParameter& updated :
         adam_step(many_updates(device), scalar(0.0625), scalar(0.5), attrs)) {
      results.insert(results.end(),
                     {updated.param, updated.state[0], updated.state[1], updated.copy});
    }
    return results;
  };
  const std::vector<Tensor> on_cuda = run(kCuda), again = run(kCuda), on_cpu = run(kCpu);
  ASSERT_EQ(on_cuda.size(), on_cpu.size());
  for (std::size_t i = 0; i < on_cpu.size(); ++i) {
    const double tolerance = on_cpu[i].dtype() == DType::float16 ? 4e-3 : 2e-6;
    ASSERT_LE(max_difference(on_cuda[i], on_cpu[i]), tolerance) << i;
    ASSERT_EQ(max_difference(on_cuda[i], again[i]), 0) << i;
  }
}

TEST(CudaOptimizer, GlobalNormMatchesTheCpu) {
  SKIP_WITHOUT_GPU();
  for (const bool wide : {false, true}) {
    for (const int count : {1, 7, 1201}) {
      const auto run = [&](Device device) {
        Generator generator(5);
        std::vector<Tensor> tensors;
        constexpr DType kDTypes[] = {DType::bfloat16, DType::float32, DType::float16};
        for (int i = 0; i < count; ++i) {
          const DType dtype = wide && i % 5 == 0 ? DType::float64 : kDTypes[i % 3];
          const std::int64_t n = i % 100 == 6 ? 0 : i % 100 == 5 ? 50000 + i : 1 + i;
          tensors.push_back(numbers(n, dtype, i % 4 == 3, -2, generator, device));
        }
        return ops::global_norm(tensors, {10});
      };
      const GlobalNorm on_cuda = run(kCuda), again = run(kCuda), on_cpu = run(kCpu);
      const double norm = on_cpu.norm.item();
      EXPECT_NEAR(on_cuda.norm.item(), norm, norm * (wide ? 1e-13 : 1e-6)) << count;
      EXPECT_NEAR(on_cuda.clip_coefficient.item(), on_cpu.clip_coefficient.item(), 1e-6);
      EXPECT_EQ(on_cuda.norm.item(), again.norm.item());
    }
  }
  const GlobalNorm nan = ops::global_norm({full({5}, NAN, {DType::float32, kCuda})}, {1});
  EXPECT_TRUE(std::isnan(nan.clip_coefficient.item()));
  EXPECT_EQ(ops::global_norm({zeros({0}, {DType::float32, kCuda})}).norm.item(), 0);
}

std::vector<Tensor> train(Device device, DType dtype) {
  Generator generator(3);
  nn::Module::NamedTensors parameters;
  for (const auto& [name, shape] : {std::pair{"w", Shape{70, 33}}, std::pair{"b", Shape{33}}}) {
    parameters.emplace_back(name, randn(shape, {dtype}, &generator).to(device).requires_grad_());
  }
  nn::AdamW optimizer(parameters, {.lr = 1e-2, .no_decay = {"b"}}, {.max_grad_norm = 1});
  std::vector<Tensor> results;
  for (int step = 0; step < 5; ++step) {
    optimizer.set_lr(1e-2 / (1 + step));
    std::vector<Tensor> gradients;
    for (const auto& [name, parameter] : parameters) {
      gradients.push_back(randn(parameter.shape(), {dtype}, &generator).to(device));
    }
    if (step % 2 == 1) {  // without a gradient a parameter stays, and its step does not count
      parameters[1].second.requires_grad_(false);
      gradients[1] = Tensor();
    }
    results.push_back(optimizer.update(gradients));
  }
  for (const auto& [name, parameter] : parameters) results.push_back(parameter);
  for (const auto& [name, tensor] : optimizer.state_dict()) results.push_back(tensor);
  return results;
}

TEST(CudaOptimizer, ClippingSixteenBitGradientsMatchesTheCpu) {
  SKIP_WITHOUT_GPU();
  // Squares that overflow float16 and float32, coefficients that float16 has no digits for, or no number.
  for (const auto& [dtype, magnitude] : {std::pair{DType::float16, 1.0},
                                         {DType::float16, 60000.0},
                                         {DType::float16, 1e-3},
                                         {DType::bfloat16, 1.0},
                                         {DType::bfloat16, 1e20},
                                         {DType::float32, 1e20}}) {
    for (const std::int64_t n : {1, 1000, 300001}) {
      for (const double max_norm : {1e-2, 3.0}) {
        Generator generator(7);
        const Tensor values =
            (uniform({n}, 0.5, 1, {DType::float64}, &generator) * magnitude).to(dtype);
        const auto clipped = [&](Device device) {
          Tensor parameter = zeros({n}, {dtype, device}).requires_grad_();
          parameter.set_grad(values.to(device));
          const double norm = nn::clip_grad_norm_({{"p", parameter}}, max_norm).item();
          return std::pair{norm, parameter.grad().to_doubles()};
        };
        const auto [norm, want] = clipped(kCpu);
        const auto [cuda_norm, got] = clipped(kCuda);
        EXPECT_NEAR(cuda_norm, norm, 1e-5 * norm) << name(dtype) << " " << magnitude << " x " << n;
        const double smallest = dtype == DType::float16 ? 0x1p-24 : 0;
        for (std::size_t i = 0; i < want.size(); ++i) {
          ASSERT_NEAR(got[i], want[i],
                      2.01 * unit_roundoff(dtype) * want[i] + 1e-5 * want[i] + smallest)
              << name(dtype) << " " << magnitude << " x " << n << ", element " << i;
        }
      }
    }
  }
}

TEST(CudaOptimizer, AdamWWithClippingMatchesTheCpu) {
  SKIP_WITHOUT_GPU();
  expect_near(train(kCuda, DType::float64), train(kCpu, DType::float64), 1e-12);
  expect_near(train(kCuda, DType::float32), train(kCpu, DType::float32), 2e-5);
  expect_near(train(kCuda, DType::bfloat16), train(kCpu, DType::bfloat16), 2e-2);
}

/// Makes an optimizer on `first`, steps there if asked to, moves the model to `second` and steps on.
std::vector<Tensor> train_across(Device first, Device second, DType dtype, bool steps_before) {
  const auto model = nn::make<nn::Linear>(33, 5);
  Generator generator(7);
  {
    const NoGradGuard no_grad;
    for (auto& [name, tensor] : model->named_parameters()) {
      Tensor(tensor).copy_(randn(tensor.shape(), {}, &generator));
    }
  }
  model->to(first);
  nn::AdamW optimizer(model->named_parameters(), {.lr = 1e-2}, {.max_grad_norm = 0.5});
  const auto step = [&](Device device, DType type) {
    const Tensor x = randn({7, 33}, {type}, &generator).to(device);
    backward(mean(square(model(x))));
    optimizer.step();
    optimizer.zero_grad();
  };
  if (steps_before) step(first, DType::float32);
  model->to(second, dtype);
  for (int i = 0; i < 3; ++i) step(second, dtype);
  std::vector<Tensor> results;
  for (const auto& [name, tensor] : optimizer.state_dict()) {
    EXPECT_EQ(tensor.device(), second) << name;
    results.push_back(tensor.cpu());
  }
  for (const auto& [name, tensor] : model->named_parameters()) results.push_back(tensor.cpu());
  return results;
}

TEST(CudaOptimizer, OneMadeBeforeTheModelMovedFollowsIt) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    for (const bool steps_before : {false, true}) {
      const auto stays = train_across(kCpu, kCpu, dtype, steps_before);
      const double tolerance = dtype == DType::bfloat16 ? 4e-2 : 1e-4;
      expect_near(train_across(kCpu, kCuda, dtype, steps_before), stays, tolerance);
      expect_near(train_across(kCuda, kCpu, dtype, steps_before), stays, tolerance);
      expect_near(train_across(kCuda, kCuda, dtype, steps_before), stays, tolerance);
    }
  }
}

TEST(CudaOptimizer, AModelThatMovedInPartIsRefusedAndNothingChanges) {
  SKIP_WITHOUT_GPU();
  const auto a = nn::make<nn::Linear>(3, 2, false);
  const auto b = nn::make<nn::Linear>(3, 2, false);
  nn::Module::NamedTensors parameters = {{"a", a->weight}, {"b", b->weight}};
  nn::AdamW optimizer(parameters);
  b->to(kCuda);
  const Tensor before = a->weight.clone();
  const std::vector<Tensor> gradients = {ones({2, 3}), ones({2, 3}, {DType::float32, kCuda})};
  EXPECT_THROW(optimizer.update(gradients), ValueError);
  EXPECT_EQ(max_difference(a->weight, before), 0);
  b->to(kCpu);
  EXPECT_EQ(optimizer.state_dict().at("step.a").item(), 0);
  EXPECT_THROW(optimizer.update(gradients), DeviceError);
  EXPECT_EQ(optimizer.state_dict().at("step.a").item(), 0);
  EXPECT_EQ(max_difference(a->weight, before), 0);
}

TEST(CudaOptimizer, GradientsAndPendingBackwardsFollowAMove) {
  SKIP_WITHOUT_GPU();
  const auto model = nn::make<nn::Linear>(1, 1, false);
  {
    const NoGradGuard no_grad;
    Tensor(model->weight).copy_(full({1, 1}, 3));
  }
  const Tensor weight = model->weight;
  backward(sum(square(weight)));
  const Tensor pending = sum(square(weight) * 5.0);
  model->to(kCuda);
  EXPECT_EQ(weight.grad().device(), kCuda);
  {
    const NoGradGuard no_grad;
    Tensor(weight).copy_(full({1, 1}, 100));
  }
  backward(pending);
  EXPECT_EQ(weight.grad().device(), kCuda);
  EXPECT_EQ(weight.grad().item(), 6 + 30);
}

/// Parameters after steps with changing learning rates, each step a Program.
std::vector<Tensor> train_scheduled(const char* graphs) {
  setenv("TENON_CUDA_GRAPHS", graphs, 1);
  auto model = nn::make<nn::Linear>(33, 5);
  Generator generator(6);
  {
    const NoGradGuard no_grad;
    for (auto& [name, tensor] : model->named_parameters()) {
      Tensor(tensor).copy_(randn(tensor.shape(), {}, &generator));
    }
  }
  model->to(kCuda);
  model->to(DType::bfloat16);
  const Tensor x = randn({7, 33}, {DType::bfloat16}, &generator).to(kCuda);
  const auto optimizer = std::make_shared<nn::AdamW>(
      model->named_parameters(), nn::AdamWOptions{.lr = 1e-2, .no_decay = {"bias"}},
      nn::OptimizerOptions{.max_grad_norm = 0.5});
  auto step = build_training(create_schedule(model, {{"x", x}}),
                             {.loss = [](auto outputs, auto) { return mean(square(outputs[0])); },
                              .optimizer = optimizer});
  std::vector<Tensor> results;
  for (int i = 0; i < 6; ++i) {
    optimizer->set_lr(1e-2 / (1 + i));
    const TrainingResult result = step.run({x});
    results.push_back(result.loss.cpu());
    results.push_back(result.grad_norm.cpu());
  }
  unsetenv("TENON_CUDA_GRAPHS");
  for (const auto& [name, tensor] : optimizer->state_dict()) results.push_back(tensor.cpu());
  for (const auto& [name, tensor] : model->named_parameters()) results.push_back(tensor.cpu());
  return results;
}

TEST(CudaOptimizer, CapturedStepsReadTheLearningRateOfTheDay) {
  SKIP_WITHOUT_GPU();
  const std::vector<Tensor> launched = train_scheduled("never");
  const std::vector<Tensor> captured = train_scheduled("always");
  ASSERT_EQ(launched.size(), captured.size());
  for (std::size_t i = 0; i < launched.size(); ++i) {
    EXPECT_EQ(max_difference(launched[i], captured[i]), 0) << i;
  }
}

}  // namespace cuda_optimizer_test
}  // namespace tenon::test
