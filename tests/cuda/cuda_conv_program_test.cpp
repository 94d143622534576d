// Convolutions in Programs on CUDA: random ones by cuDNN in channels-last memory, and models whose images
// stay channels-last between them.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include "graph/program.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/schedules.h"
#include "schedule/training.h"
#include "tensor/support/check.h"
#include "tests/cuda/cuda_outputs.h"

namespace tenon::test {
namespace {

struct OneConvolution : nn::Module {
  explicit OneConvolution(const nn::Child<nn::Conv2d>& made)
      : conv(register_module("conv", made)) {}
  Tensor forward(const Tensor& x) const { return conv(x); }
  nn::Child<nn::Conv2d> conv;
};

struct RandomConvolution {
  std::int64_t samples, in, out, groups, kernel_h, kernel_w, height, width;
  std::int64_t stride, padding, dilation;
  bool bias;

  explicit RandomConvolution(std::mt19937& random) {
    const auto pick = [&](std::initializer_list<std::int64_t> values) {
      return values.begin()[random() % values.size()];
    };
    groups = pick({1, 1, 1, 2, 4});
    const bool depthwise = random() % 8 == 0;
    in = groups * pick({1, 3, 5, 8, 16, 24});
    if (depthwise) groups = in;
    out = groups * pick({1, 2, 8, 12});
    kernel_h = pick({1, 1, 3, 3, 5, 7});
    kernel_w = random() % 4 == 0 ? pick({1, 2, 3}) : kernel_h;
    stride = pick({1, 1, 2, 3});
    dilation = pick({1, 1, 1, 2});
    padding = pick({0, 1, kernel_h / 2});
    const std::int64_t reach = dilation * (std::max(kernel_h, kernel_w) - 1) + 1;
    height = reach + pick({0, 1, 5, 14});
    width = reach + pick({0, 2, 7, 13});
    samples = pick({1, 2, 5});
    bias = random() % 2 == 0;
  }
  std::string to_string() const {
    return fmt::format("({}, {}, {}, {}) -> {}, kernel {}x{}, stride {}, padding {}, dilation {}, {} "
                       "groups{}",
                       samples, in, height, width, out, kernel_h, kernel_w, stride, padding,
                       dilation, groups, bias ? ", bias" : "");
  }
  nn::Child<nn::Conv2d> make() const {
    return nn::make<nn::Conv2d>(in, out, Size2{kernel_h, kernel_w}, Size2{stride, stride},
                                Size2{padding, padding}, Size2{dilation, dilation}, groups, bias);
  }
};

/// Output, and the gradients of the mean square of the output by name.
std::vector<std::pair<std::string, Tensor>> results_of(const nn::Child<OneConvolution>& model,
                                                       const Tensor& x,
                                                       std::vector<InstructionInfo>& work) {
  auto step = build_training(
      create_schedule(model, {{"x", x}}),
      {.loss = [](auto y, auto) { return mean(square(y[0].to(DType::float32))); }, .verify = false});
  const std::vector<Tensor> inputs = {x};
  auto results = step.run(inputs).gradients;
  work = step.program(inputs).instructions();
  results.emplace_back("output", build(create_schedule(model, {{"x", x}}), {.verify = false})(x));
  return results;
}

double relative_distance(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.to_doubles(), y = b.to_doubles();
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    apart += (x[i] - y[i]) * (x[i] - y[i]);
    size += y[i] * y[i];
  }
  return size == 0 ? std::sqrt(apart) : std::sqrt(apart / size);
}

TEST(CudaConvPrograms, RandomOnesAreCudnnsAndAgreeWithTheCpu) {
  SKIP_WITHOUT_GPU();
  constexpr unsigned kSeed = 16;
  std::mt19937 random(kSeed);
  int direct = 0, all = 0;
  for (int i = 0; i < 72; ++i) {
    const RandomConvolution c(random);
    const DType dtype = std::array{DType::bfloat16, DType::float16, DType::float32}[i % 3];
    SCOPED_TRACE(fmt::format("seed {}, number {}, {}: {}", kSeed, i, name(dtype), c.to_string()));
    const auto model = nn::make<OneConvolution>(c.make());
    model->requires_grad_();
    const Tensor x = randn({c.samples, c.in, c.height, c.width}).to(dtype);
    model->to(kCpu, dtype);  // rounded once, then exact
    model->to(kCpu, DType::float64);
    std::vector<InstructionInfo> work;
    const auto wanted = results_of(model, x.to(DType::float64), work);
    model->to(kCuda, dtype);
    const auto found = results_of(model, x.to(kCuda), work);
    const double bound = dtype == DType::float32 ? 2e-6 : 3 * unit_roundoff(dtype);
    ASSERT_EQ(found.size(), wanted.size());
    for (std::size_t k = 0; k < found.size(); ++k) {
      EXPECT_EQ(found[k].first, wanted[k].first);
      // Terms of a bias's gradient cancel, and each of them is rounded.
      const double cancels = found[k].first == "conv.bias" ? 8 : 1;
      EXPECT_LE(relative_distance(found[k].second, wanted[k].second), cancels * bound)
          << found[k].first;
    }
    for (const InstructionInfo& info : work) {
      all += info.kernel.find("conv2d") != std::string::npos ? 1 : 0;
      direct += info.kernel.starts_with("cuda.conv2d") ? 1 : 0;
    }
    for (int repeat = 0; repeat < 3; ++repeat) {
      const auto again = results_of(model, x.to(kCuda), work);
      for (std::size_t k = 0; k < found.size(); ++k) {
        EXPECT_EQ(again[k].second.to_doubles(), found[k].second.to_doubles()) << found[k].first;
      }
    }
    if (HasFailure()) return;
  }
  EXPECT_GE(all, 140);
  EXPECT_LE(direct, all / 20) << "of " << all << " convolutions ran without cuDNN";
}

struct ResidualNet : nn::Module {
  ResidualNet()
      : stem(add<nn::Conv2d>("stem", 3, 16, 3, 1, 1)),
        bn(add<nn::BatchNorm2d>("bn", 16)),
        point(add<nn::Conv2d>("point", 16, 16, 1)),
        deep(add<nn::Conv2d>("deep", 16, 32, 3, 2, 1)),
        head(add<nn::Linear>("head", 32, 5)) {}
  Tensor forward(const Tensor& images) const {
    const Tensor x = max_pool2d(relu(bn(stem(images))), {2, 2}, {2, 2}, {0, 0});
    const Tensor y = relu(point(x) + x);
    return head(mean(gelu(deep(y)), {2, 3}));
  }
  nn::Child<nn::Conv2d> stem;
  nn::Child<nn::BatchNorm2d> bn;
  nn::Child<nn::Conv2d> point, deep;
  nn::Child<nn::Linear> head;
};

int copies_in(const Program& program) {
  int count = 0;
  for (const InstructionInfo& info : program.instructions()) count += info.kernel == "cuda.copy";
  return count;
}

TEST(CudaConvPrograms, ImagesStayChannelsLastBetweenConvolutions) {
  SKIP_WITHOUT_GPU();
  manual_seed(3);
  const auto model = nn::make<ResidualNet>();
  model->eval();
  const Tensor x = randn({4, 3, 18, 22});
  const Tensor exact = build(create_schedule(model, {{"x", x}}), {.verify = false})(x);
  model->to(kCuda, DType::bfloat16);
  const Tensor images = x.to(DType::bfloat16).to(kCuda);
  Executor run = build(create_schedule(model, {{"x", images}}), {.verify = false});
  EXPECT_LE(relative_distance(run(images), exact), 0.03);
  const std::vector<Tensor> inputs = {images};
  // The images, and the filters of two convolutions whose windows have more than one element.
  EXPECT_EQ(copies_in(run.program(inputs)), 3) << run.program(inputs).to_string();
}

/// A convolution and what may follow it.
struct Followed : nn::Module {
  enum class By { bias_relu, bias_add_relu, norm, norm_relu, norm_add_relu };
  Followed(const RandomConvolution& c, By what)
      : by(what),
        conv(register_module("conv", c.make())),
        norm(add<nn::BatchNorm2d>("norm", c.out)) {}
  Tensor forward(const Tensor& x, const Tensor& residual) const {
    const auto& o = *conv;
    const bool adds = by == By::bias_add_relu;
    switch (by) {
      case By::bias_relu:
      case By::bias_add_relu:
        return conv2d_relu(x, o.weight, o.bias, adds ? residual : Tensor(), o.stride, o.padding,
                           o.dilation, o.groups);
      case By::norm: return norm(conv(x)) * residual;
      case By::norm_relu: return relu(norm(conv(x))) * residual;
      case By::norm_add_relu: return relu(norm(conv(x)) + residual);
    }
    return {};
  }
  By by;
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
};

TEST(CudaConvPrograms, WhatFollowsIsPartOfTheConvolution) {
  SKIP_WITHOUT_GPU();
  manual_seed(5);
  std::mt19937 random(29);
  int fused = 0, all = 0;
  for (int i = 0; i < 60; ++i) {
    RandomConvolution c(random);
    if (i % 3 != 0) {  // also as large as those of models
      c.groups = 1, c.in = 64 * (i % 2 + 1), c.out = 8 * (i % 7 + 6);
      c.samples = 2, c.height += 26, c.width += 27;
    }
    const auto by = static_cast<Followed::By>(i % 5);
    const bool normalizes = by >= Followed::By::norm;
    c.bias = !normalizes && c.bias;
    const DType dtype = i % 2 == 0 ? DType::bfloat16 : DType::float16;
    SCOPED_TRACE(fmt::format("number {}, {}, {}: {}", i, i % 5, name(dtype), c.to_string()));
    const auto model = nn::make<Followed>(c, by);
    {
      const NoGradGuard no_grad;
      Tensor(model->norm->running_mean).copy_(randn({c.out}) * 0.25);
      Tensor(model->norm->running_var).copy_(square(randn({c.out})) + 0.5);
      Tensor(model->norm->weight).copy_(randn({c.out}));
      Tensor(model->norm->bias).copy_(randn({c.out}));
    }
    model->eval();
    const Tensor x = randn({c.samples, c.in, c.height, c.width}).to(dtype);
    const Tensor residual = randn(model->conv(x.to(DType::float32)).shape()).to(dtype);
    model->to(kCpu, dtype);
    model->to(kCpu, DType::float64);
    const Tensor wanted = model(x.to(DType::float64), residual.to(DType::float64));
    model->to(kCuda, dtype);
    const std::vector<Tensor> inputs = {x.to(kCuda), residual.to(kCuda)};
    Schedule sch = create_schedule(model, {{"x", inputs[0]}, {"residual", inputs[1]}});
    if (normalizes) schedules::convolutional(sch);
    Executor run = build(sch, {.verify = false});
    const Tensor found = run(inputs[0], inputs[1]);
    EXPECT_LE(relative_distance(found, wanted), 4 * unit_roundoff(dtype));
    const bool is_fused = c.in / c.groups % 8 == 0 && c.out % 8 == 0 && c.groups == 1;
    for (const InstructionInfo& info : run.program(inputs).instructions()) {
      if (!is_fused || info.kernel.find("conv2d") == std::string::npos) continue;
      ++all;
      fused += info.kernel == (by == Followed::By::norm ? "cudnn.conv2d" : "cudnn.conv2d_relu");
    }
    for (int repeat = 0; repeat < 20; ++repeat) {
      EXPECT_EQ(run(inputs[0], inputs[1]).to_doubles(), found.to_doubles());
    }
    if (HasFailure()) return;
  }
  EXPECT_GE(all, 40);
  EXPECT_GE(fused, all * 9 / 10) << "of " << all;
}

TEST(CudaConvPrograms, NansPassTheFusedRelu) {
  SKIP_WITHOUT_GPU();
  RandomConvolution c(*std::make_unique<std::mt19937>(1));
  c.samples = 1, c.in = 16, c.out = 16, c.groups = 1, c.kernel_h = c.kernel_w = 3, c.stride = 1;
  c.padding = c.dilation = 1, c.height = c.width = 8, c.bias = true;
  const auto model = nn::make<Followed>(c, Followed::By::bias_relu);
  model->to(kCuda, DType::bfloat16);
  Tensor x = zeros({1, 16, 8, 8});
  x.narrow(2, 3, 1).copy_(full({1, 16, 1, 8}, std::nan("")));
  const Tensor images = x.to(DType::bfloat16).to(kCuda);
  Executor run =
      build(create_schedule(model, {{"x", images}, {"residual", images}}), {.verify = false});
  const std::vector<double> y = run(images, images).to_doubles();
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t row = i / 8 % 8;
    EXPECT_EQ(std::isnan(y[i]), row >= 2 && row <= 4) << i;
  }
}

TEST(CudaConvPrograms, ResultsAreRowMajor) {
  SKIP_WITHOUT_GPU();
  const auto model = nn::make<OneConvolution>(nn::make<nn::Conv2d>(8, 16, 3, 1, 1));
  model->to(kCuda, DType::bfloat16);
  const Tensor x = randn({2, 8, 5, 6}).to(DType::bfloat16).to(kCuda);
  const Tensor y = build(create_schedule(model, {{"x", x}}), {.verify = false})(x);
  EXPECT_TRUE(y.is_contiguous());
}

}  // namespace
}  // namespace tenon::test
