// fuse on gelu(x + bias): the fused op is found for both forms, equals the composition forward and
// backward in every dtype, and near misses stay as they are.
#include <gtest/gtest.h>

#include <algorithm>

#include "schedule/schedule.h"
#include "schedule/verification.h"
#include "tensor/device_backend.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

struct Mlp : nn::Module {
  explicit Mlp(Approximate form)
      : up(add<nn::Linear>("up", 6, 20)),
        act(add<nn::GELU>("act", form)),
        down(add<nn::Linear>("down", 20, 6)) {}
  Tensor forward(const Tensor& x) const { return down(act(up(x))); }
  nn::Child<nn::Linear> up;
  nn::Child<nn::GELU> act;
  nn::Child<nn::Linear> down;
};

/// gelu(x + bias) of one form.
Matches find_bias_gelu(const Schedule& sch, Approximate form) {
  return sch.find([form](const Tensor& x, const Tensor& bias) { return gelu(x + bias, form); });
}

struct FuseCase {
  Approximate form;
  DType dtype;
  DeviceType device;
};

class FuseBiasGelu : public ::testing::TestWithParam<FuseCase> {
 protected:
  void SetUp() override {
    const Device device{GetParam().device, 0};
    if (!is_available(device)) GTEST_SKIP() << "no " << device.to_string() << " device";
    model->to(device, GetParam().dtype);
    x = randn({4, 3, 6}).to(GetParam().dtype).to(device);
  }
  Schedule fused() const {
    Schedule sch = create_schedule(model, {{"x", x}});
    sch["up"].decompose();
    sch.trace({.flatten = true});
    sch.fuse(find_bias_gelu(sch, GetParam().form), {.name = "BiasGelu"});
    return sch;
  }
  nn::Child<Mlp> model = nn::make<Mlp>(GetParam().form);
  Tensor x;
};

TEST_P(FuseBiasGelu, TakesTheFormOfTheModule) {
  const Schedule sch = fused();
  const std::string form(enum_name(GetParam().form));
  EXPECT_NE(to_text(sch.graph()).find("bias_gelu("), std::string::npos) << to_text(sch.graph());
  EXPECT_NE(to_text(sch.graph()).find("approximate=" + form), std::string::npos);
  EXPECT_EQ(to_text(sch.graph()).find(" gelu("), std::string::npos);
}

TEST_P(FuseBiasGelu, EqualsTheCompositionForwardAndBackward) {
  const VerifyReport report = verify(fused(), {.whole = true});
  EXPECT_TRUE(report.ok()) << report.to_string();
  for (const char* name : {"output 0", "gradient of input x", "gradient of up.bias",
                           "gradient of up.weight", "gradient of down.weight"}) {
    const auto found = std::find_if(report.results.begin(), report.results.end(),
                                    [&](const Comparison& c) { return c.name == name; });
    ASSERT_NE(found, report.results.end()) << name << "\n" << report.to_string();
    EXPECT_LE(found->float64_difference, 1e-12) << name;
    EXPECT_LE(found->scheduled_error, found->allowed_error) << name;
  }
}

TEST_P(FuseBiasGelu, RunsAsOneKernelAtEverySize) {
  Executor run = build(fused());
  Executor plain(create_schedule(model, {{"x", x}}).graph());
  const std::string device = GetParam().device == DeviceType::cpu ? "cpu" : "cuda";
  const double bound = 64 * unit_roundoff(GetParam().dtype);
  for (const Shape& shape : {Shape{4, 3, 6}, Shape{1, 1, 6}, Shape{0, 2, 6}}) {
    const std::vector<Tensor> inputs = {randn(shape).to(x.dtype()).to(x.device())};
    EXPECT_LE(max_difference(run.run(inputs, false)[0], plain.run(inputs, false)[0]), bound);
    int kernels = 0;
    for (const InstructionInfo& info : run.program(inputs).instructions()) {
      kernels += info.kernel == device + ".bias_gelu";
      EXPECT_NE(info.kernel, device + ".gelu");
    }
    EXPECT_EQ(kernels, 1);
  }
}

std::vector<FuseCase> cases() {
  std::vector<FuseCase> all;
  for (const DeviceType device : {DeviceType::cpu, DeviceType::cuda}) {
    for (const Approximate form : {Approximate::none, Approximate::tanh}) {
      for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
        all.push_back({form, dtype, device});
      }
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Cases, FuseBiasGelu, ::testing::ValuesIn(cases()), [](const auto& test) {
  return std::string(test.param.device == DeviceType::cpu ? "cpu_" : "cuda_") +
         std::string(enum_name(test.param.form)) + "_" + std::string(name(test.param.dtype));
});

/// The matches are refused with this text, or there are none; the Graph stays.
template <class F>
void expect_unfused(F function, const std::string& text) {
  const Schedule traced =
      create_schedule(function_model(std::move(function)), {randn({3, 4}), randn({4})});
  Schedule sch = traced;
  const std::string before = to_text(sch.graph());
  const std::string message =
      test::error_text<ScheduleError>([&] { sch.fuse(find_bias_gelu(sch, Approximate::none)); });
  EXPECT_NE(message.find(text), std::string::npos) << message;
  EXPECT_EQ(to_text(sch.graph()), before);
}

TEST(FuseBiasGeluNearMisses, AreRefused) {
  expect_unfused([](const Tensor& x, const Tensor& b) { return gelu(relu(x + b)); },
                 "the match is empty");
  expect_unfused([](const Tensor& x, const Tensor& b) { return gelu(x + b, Approximate::tanh); },
                 "the match is empty");
  expect_unfused([](const Tensor& x, const Tensor& b) { return gelu(x - b); },
                 "the match is empty");
  expect_unfused(
      [](const Tensor& x, const Tensor& b) {
        const Tensor y = x + b;
        return gelu(y) + y;
      },
      "the match is empty");
  // A residual is no bias: its shape is not (N).
  expect_unfused([](const Tensor& x, const Tensor& b) { return gelu(x + (x * b)); },
                 "needed the shape (s1,)");
}

TEST(FuseBiasGeluNearMisses, OtherCompositionsHaveNoKernel) {
  const auto model = function_model([](const Tensor& x, const Tensor& b) { return silu(x + b); });
  Schedule sch = create_schedule(model, {randn({3, 4}), randn({4})});
  const std::string message = test::error_text<ScheduleError>(
      [&] { sch.fuse(sch.find([](const Tensor& x, const Tensor& b) { return silu(x + b); })); });
  EXPECT_NE(message.find("no fused op is registered for the composition of add, silu"),
            std::string::npos)
      << message;
}

}  // namespace
}  // namespace tenon
