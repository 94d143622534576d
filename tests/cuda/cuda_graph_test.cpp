// Programs as captured CUDA graphs: the same bits as kernel by kernel, in inference and training, with
// dropout and a changing learning rate; addresses that move; and memory that runs out.
#include <cstdlib>

#include "schedule/schedules.h"
#include "schedule/training.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/compare.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace {

/// TENON_CUDA_GRAPHS for the scope's lifetime.
class CaptureSetting {
 public:
  explicit CaptureSetting(const char* value) { setenv("TENON_CUDA_GRAPHS", value, 1); }
  ~CaptureSetting() { unsetenv("TENON_CUDA_GRAPHS"); }
};
constexpr const char* kSettings[] = {"never", "automatic", "always"};

Tensor example(Shape shape, std::uint64_t seed, DType dtype = DType::float32) {
  Generator generator(seed);
  return randn(shape, {dtype}, &generator).to(kCuda);
}

nn::Child<EncoderLayer> encoder(DType dtype) {
  manual_seed(7);
  auto model = nn::make<EncoderLayer>(64);
  model->to(kCuda, dtype);
  model->requires_grad_();
  return model;
}

/// Six forward passes in training mode over three inputs: what each returned, on the host.
std::vector<Tensor> forward_passes(DType dtype, std::size_t& captures) {
  const auto model = encoder(dtype);
  std::vector<Tensor> inputs;
  for (int i = 0; i < 3; ++i) inputs.push_back(example({2, 24, 64}, 10 + i, dtype));
  Schedule sch = create_schedule(model, {{"x", inputs[0]}});
  schedules::transformer_encoder(sch);
  Executor run = build(sch, {.verify = false});
  manual_seed(3);
  std::vector<Tensor> outputs;
  for (int i = 0; i < 12; ++i) {
    const Tensor* x = &inputs[static_cast<std::size_t>(i % 3)];
    outputs.push_back(run.run(std::span(x, 1), /*training=*/true).at(0).to(kCpu));
  }
  captures = run.program(std::span(inputs.data(), 1), true).num_captures();
  return outputs;
}

TEST(CudaGraph, GivesTheBitsOfSingleLaunches) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    std::vector<std::vector<Tensor>> results;
    for (const char* setting : kSettings) {
      const CaptureSetting guard(setting);
      std::size_t captures = 0;
      results.push_back(forward_passes(dtype, captures));
      EXPECT_EQ(captures > 0, std::string(setting) != "never") << setting;
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) {
      EXPECT_EQ(max_difference(results[0][i], results[1][i]), 0) << "pass " << i;
      EXPECT_EQ(max_difference(results[0][i], results[2][i]), 0) << "pass " << i;
    }
    // The same input three passes later: another forward number, another mask.
    EXPECT_GT(max_difference(results[0][0], results[0][3]), 0.01);
  }
}

/// Parameters after eight steps with a learning rate that changes, and a batch of another size.
std::vector<Tensor> trained(DType dtype) {
  const auto model = encoder(dtype);
  const Tensor x = example({2, 24, 64}, 1, dtype);
  const Tensor y = example({2, 24, 64}, 2, dtype);
  Schedule sch = create_schedule(model, {{"x", x}});
  schedules::transformer_encoder(sch);
  auto optimizer = std::make_shared<nn::AdamW>(model->named_parameters(), nn::AdamWOptions{},
                                               nn::OptimizerOptions{.max_grad_norm = 1.0});
  auto step = build_training(
      sch, {.loss = [](std::span<const Tensor> out,
                       std::span<const Tensor> target) { return mse_loss(out[0], target[0]); },
            .targets = {{"y", y}},
            .optimizer = optimizer,
            .verify = false});
  manual_seed(5);
  for (int i = 0; i < 8; ++i) {
    optimizer->set_lr(1e-3 * (1 + i));
    if (i == 4) {
      step.run({x.narrow(0, 0, 1).contiguous(), y.narrow(0, 0, 1).contiguous()});
    } else {
      step.run({x, y});
    }
  }
  std::vector<Tensor> parameters;
  for (const auto& [name, tensor] : model->named_parameters()) {
    parameters.push_back(tensor.detach().to(kCpu));
  }
  return parameters;
}

TEST(CudaGraph, TrainsToTheSameBits) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    std::vector<std::vector<Tensor>> results;
    for (const char* setting : kSettings) {
      const CaptureSetting guard(setting);
      results.push_back(trained(dtype));
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) {
      EXPECT_EQ(max_difference(results[0][i], results[1][i]), 0) << "parameter " << i;
      EXPECT_EQ(max_difference(results[0][i], results[2][i]), 0) << "parameter " << i;
    }
  }
}

TEST(CudaGraph, FollowsChangedParametersAndSeeds) {
  SKIP_WITHOUT_GPU();
  const auto model = encoder(DType::float32);
  const Tensor x = example({1, 8, 64}, 1);
  Executor run = build(create_schedule(model, {{"x", x}}), {.verify = false});
  const auto pass = [&](bool training) {
    return run.run(std::span(&x, 1), training).at(0).to(kCpu);
  };
  manual_seed(1);
  std::vector<Tensor> first;
  for (int i = 0; i < 4; ++i) first.push_back(pass(true));
  manual_seed(2);
  EXPECT_GT(max_difference(pass(true), first[0]), 0.01);
  manual_seed(1);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(max_difference(pass(true), first[i]), 0) << i;
  Tensor before;
  for (int i = 0; i < 3; ++i) before = pass(false);
  {
    const NoGradGuard no_grad;
    Tensor weight = model->mlp_norm->weight;
    weight.copy_(weight * 2.0);
  }
  EXPECT_GT(max_difference(pass(false), before), 0.01);
}

TEST(CudaGraph, KeepsABoundedNumber) {
  SKIP_WITHOUT_GPU();
  const auto model = function_model([](const Tensor& x) { return gelu(x) + sin(x); });
  std::vector<Tensor> inputs;
  for (int i = 0; i < 40; ++i) inputs.push_back(example({64}, 100 + i));
  Executor run = build(create_schedule(model, {{"x", inputs[0]}}), {.verify = false});
  for (int round = 0; round < 3; ++round) {
    for (const Tensor& x : inputs) {
      const Tensor got = run.run(std::span(&x, 1)).at(0);
      EXPECT_EQ(max_difference(got, model(x)), 0);
    }
  }
  EXPECT_LE(run.program(std::span(inputs.data(), 1)).num_captures(), 16U);
}

TEST(CudaGraph, OutputsBelongToTheCaller) {
  SKIP_WITHOUT_GPU();
  const auto model = function_model([](const Tensor& x) { return x * 2.0; });
  const Tensor x = full({1000}, 1, {DType::float32, kCuda});
  Executor run = build(create_schedule(model, {{"x", x}}), {.verify = false});
  std::vector<Tensor> kept;
  for (int i = 0; i < 20; ++i) {
    Tensor input = x;
    input.copy_(full({1000}, i, {DType::float32, kCuda}));
    kept.push_back(run.run(std::span(&x, 1)).at(0));
  }
  for (int i = 0; i < 20; ++i) EXPECT_EQ(kept[i].to_doubles()[999], 2.0 * i);
}

TEST(CudaGraph, OutOfMemoryNamesTheNodeAndLeaksNothing) {
  SKIP_WITHOUT_GPU();
  const auto model = function_model(
      [](const Tensor& x) { return sum(gelu(x.unsqueeze(1) * x.unsqueeze(0)) + x.unsqueeze(1)); });
  const Tensor small = full({1000}, 1, {DType::float32, kCuda});
  const Tensor large = full({400000}, 1, {DType::float32, kCuda});  // 640 GB of products
  Executor run = build(create_schedule(model, {{"x", small}}), {.verify = false});
  const double expected = run.run(std::span(&small, 1)).at(0).item();
  const std::size_t live = device_backend(DeviceType::cuda).memory_stats(0).live;
  try {
    run.run(std::span(&large, 1));
    FAIL() << "640 GB were allocated";
  } catch (const OutOfMemory& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("[lower] the program needs"), std::string::npos) << text;
    EXPECT_NE(text.find("at gelu"), std::string::npos) << text;
    EXPECT_GT(error.requested, std::size_t{600} << 30);
    EXPECT_GT(error.free_bytes, 0U);
    EXPECT_GT(error.live_bytes, 0U);
  }
  EXPECT_LE(device_backend(DeviceType::cuda).memory_stats(0).live, live);
  EXPECT_EQ(run.run(std::span(&small, 1)).at(0).item(), expected);
}

}  // namespace
}  // namespace tenon::test
