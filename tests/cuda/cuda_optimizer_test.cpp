// adam_step and sgd_step on CUDA against the CPU, for every pair of dtypes, sizes around a block and
// unaligned operands; and whole optimizers, clipping included.
#include "nn/nn.h"
#include "tensor/ops/optimizer_steps.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/compare.h"

namespace tenon::test {
namespace {

struct Sample {
  DType param;
  DType grad;
  double tolerance;
};
constexpr Sample kSamples[] = {
    {DType::float64, DType::float64, 1e-14}, {DType::float32, DType::float32, 2e-6},
    {DType::float32, DType::float16, 2e-6},  {DType::float32, DType::bfloat16, 2e-6},
    {DType::float16, DType::float16, 4e-3},  {DType::bfloat16, DType::bfloat16, 4e-2}};
constexpr std::int64_t kSizes[] = {0, 1, 3, 4, 1023, 1024, 1025, 300001};

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
  const AdamStepResult r = adam_step(param, grad, avg, avg_sq, scalar(3), scalar(0.0625),
                                     scalar(0.5), {0.8, 0.95, 1e-6, 0.125, unaligned});
  return {r.param, r.exp_avg, r.exp_avg_sq};
}

std::vector<Tensor> sgd(const Sample& sample, std::int64_t n, bool unaligned, bool momentum,
                        double step, Device device) {
  Generator generator(2);
  const auto make = [&](DType dtype) {
    return numbers(n, dtype, unaligned, -2, generator, device);
  };
  const Tensor param = make(sample.param), grad = make(sample.grad), buffer = make(sample.param);
  const auto scalar = [&](double value) { return full({1}, value, {DType::float32, device}); };
  SgdStepAttrs attrs{.weight_decay = 0.125};
  if (!momentum) {
    return {sgd_step(param, grad, Tensor(), Tensor(), scalar(0.0625), Tensor(), attrs).param};
  }
  attrs.momentum = 0.9;
  attrs.nesterov = unaligned;
  const SgdStepResult r =
      sgd_step(param, grad, buffer, scalar(step), scalar(0.0625), scalar(0.5), attrs);
  return {r.param, r.momentum_buffer};
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
    results.push_back(optimizer.update(gradients));
  }
  for (const auto& [name, parameter] : parameters) results.push_back(parameter);
  for (const auto& [name, tensor] : optimizer.state_dict()) results.push_back(tensor);
  return results;
}

TEST(CudaOptimizer, AdamWWithClippingMatchesTheCpu) {
  SKIP_WITHOUT_GPU();
  expect_near(train(kCuda, DType::float64), train(kCpu, DType::float64), 1e-12);
  expect_near(train(kCuda, DType::float32), train(kCpu, DType::float32), 2e-5);
  expect_near(train(kCuda, DType::bfloat16), train(kCpu, DType::bfloat16), 2e-2);
}

}  // namespace
}  // namespace tenon::test
