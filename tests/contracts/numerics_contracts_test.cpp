// DESIGN section 5 (numerics, determinism), contract 12 of section 3 (kernels are alternatives), and
// the tiers of section 4 that verification applies.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>

#include "autograd/autograd.h"
#include "examples/attention_model.h"
#include "schedule/schedule.h"
#include "schedule/verification.h"
#include "tensor/parallel.h"
#include "tensor/random.h"
#include "tests/support/compare.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

/// FNV-1a over the bytes of a model's gradients after one training step on fixed inputs.
std::uint64_t gradient_digest() {
  manual_seed(42);
  Generator generator(7);
  const auto model = nn::make<tutorial::Attention>(64, 4);
  for (auto& [name, tensor] : model->named_parameters()) {
    const NoGradGuard no_grad;
    Tensor(tensor).copy_(randn(tensor.shape(), {}, &generator) * 0.1);
  }
  backward(mean(square(model(randn({3, 33, 64}, {}, &generator)))));
  std::uint64_t digest = 0xcbf29ce484222325ULL;
  for (const auto& [name, tensor] : model->named_parameters()) {
    for (const float value : tensor.grad().to_vector<float>()) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, &value, sizeof bits);
      digest = (digest ^ bits) * 0x100000001b3ULL;
    }
  }
  return digest;
}

TEST(Contract5, ResultsDoNotDependOnTheNumberOfThreads) {
  const int before = num_threads();
  set_num_threads(1);
  const std::uint64_t one = gradient_digest();
  for (const int threads : {2, 3, 8}) {
    set_num_threads(threads);
    EXPECT_EQ(gradient_digest(), one) << threads << " threads";
  }
  set_num_threads(before);
}

TEST(Contract5, DISABLED_PrintDigest) { std::printf("digest %016lx\n", gradient_digest()); }

TEST(Contract5, ResultsAreTheSameFromProcessToProcess) {
  std::array<char, 4096> self{};
  ASSERT_GT(readlink("/proc/self/exe", self.data(), self.size() - 1), 0);
  const std::string expected = fmt::format("digest {:016x}", gradient_digest());
  for (const char* threads : {"1", "2"}) {
    const std::string command = fmt::format(
        "GTEST_OUTPUT= TENON_NUM_THREADS={} '{}' --gtest_also_run_disabled_tests "
        "--gtest_filter=Contract5.DISABLED_PrintDigest",
        threads, self.data());
    FILE* pipe = popen(command.c_str(), "r");
    ASSERT_NE(pipe, nullptr);
    std::string output;
    for (std::array<char, 256> line{}; fgets(line.data(), line.size(), pipe) != nullptr;) {
      output += line.data();
    }
    EXPECT_EQ(pclose(pipe), 0);
    EXPECT_NE(output.find(expected), std::string::npos) << output;
  }
}

TEST(Contract5, ReductionsOfSixteenBitTypesAccumulateInFloat32) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    const Tensor x =
        ones({1, 4096}, {dtype});  // in 16 bits a running sum would stop at 256 or 2048
    EXPECT_EQ(sum(x).item(), 4096);
    EXPECT_EQ(matmul(x, x.transpose(0, 1)).item(), 4096);
    EXPECT_EQ(linear(x, ones({1, 4096}, {dtype})).item(), 4096);
  }
}

TEST(Contract5, NanAndInfPropagate) {
  const Tensor nan = full({3}, std::nan(""));
  const Tensor inf = full({3}, HUGE_VAL);
  EXPECT_TRUE(std::isnan(sum(nan).item()));
  EXPECT_TRUE(std::isnan(amax(nan).item()));
  EXPECT_TRUE(std::isnan((inf - inf).to_doubles()[0]));
  EXPECT_TRUE(std::isnan(softmax(nan, 0).to_doubles()[1]));
  EXPECT_EQ(sum(inf).item(), HUGE_VAL);
  EXPECT_TRUE(std::isnan(matmul(nan.unsqueeze(0), zeros({3, 1})).item()));
}

TEST(Contract5, OddLayoutsWorkForwardAndBackward) {
  Tensor empty_input = randn({0, 4}).requires_grad_();
  backward(sum(gelu(empty_input) * 2.0));
  EXPECT_EQ(empty_input.grad().shape().to_string(), "(0, 4)");
  Tensor scalar = full({}, 3).requires_grad_();
  backward(scalar * scalar);
  EXPECT_EQ(scalar.grad().item(), 6);
  Tensor row = randn({1, 5}).requires_grad_();
  backward(sum(row.expand({7, 5}) * 2.0));  // stride 0
  EXPECT_EQ(row.grad().to_doubles(), std::vector<double>(5, 14.0));
  Tensor base = randn({9}).requires_grad_();
  backward(sum(square(base.narrow(0, 1, 7))));  // not aligned
  EXPECT_LT(max_difference(base.grad().narrow(0, 1, 7), base.narrow(0, 1, 7) * 2.0), 1e-7);
  EXPECT_EQ(base.grad().to_doubles()[0], 0);
}

TEST(Contract3_12, AnOpsImplementationsAreAlternativesChosenByAPureFunction) {
  const Op& op = get_op("scaled_dot_product_attention");
  const Tensor q = randn({2, 3, 8, 16});
  const TensorView views[] = {q.view_of_data(), q.view_of_data(), q.view_of_data(), TensorView{}};
  const TensorView outputs[] = {q.view_of_data()};
  const Attrs attrs = {};
  KernelArgs args{.op = &op, .inputs = views, .outputs = outputs, .attrs = &attrs};
  const Kernel* first = select_kernel(op, DeviceType::cpu, args);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(select_kernel(op, DeviceType::cpu, args), first);
  for (const Kernel& kernel : op.kernels(DeviceType::cpu))
    EXPECT_TRUE(kernel.name.starts_with("cpu."));
}

/// A schedule in which `pattern` was replaced by `replacement`.
template <class P, class R>
VerifyReport report_of(P pattern, R replacement) {
  const auto model = function_model([](const Tensor& x) { return relu(x) * 2.0 + x; });
  Schedule sch = create_schedule(model, {{"x", randn({4, 6})}});
  sch.replace(replacement, sch.find(pattern));
  return verify(sch);
}

Tensor doubled_relu(const Tensor& x) { return relu(x) * 2.0; }
Tensor regrouped(const Tensor& x) { return relu(x * 2.0); }
Tensor slightly_off(const Tensor& x) { return relu(x) * 2.00000001; }
Tensor right_forward_only(const Tensor& x) { return detach(relu(x)) * 2.0; }
Tensor other_slope(const Tensor& x) { return relu(x) + detach(relu(x)); }

TEST(Contract4, VerificationComparesMeaningInFloat64AndGradients) {
  const VerifyReport fine = report_of(doubled_relu, regrouped);
  EXPECT_TRUE(fine.ok()) << fine.to_string();
  EXPECT_FALSE(report_of(doubled_relu, slightly_off).ok());
  for (const auto& wrong : {right_forward_only, other_slope}) {
    const VerifyReport report = report_of(doubled_relu, wrong);
    bool gradient_fails = false;
    for (const Comparison& c : report.results) {
      if (c.trial != "drawn inputs") continue;
      const bool is_gradient = c.name.starts_with("gradient");
      EXPECT_TRUE(c.ok || is_gradient) << c.name;
      gradient_fails = gradient_fails || (is_gradient && !c.ok);
    }
    EXPECT_TRUE(gradient_fails) << report.to_string();
    EXPECT_FALSE(report.ok());
  }
}

TEST(Contract4, TheBoundKernelsErrorIsAtMostTwiceThePlainOnesPlusAFloor) {
  const VerifyReport report = report_of(doubled_relu, regrouped);
  for (const Comparison& c : report.results) {
    EXPECT_GE(c.allowed_error, 2 * c.unscheduled_error);
    EXPECT_LE(c.scheduled_error, c.allowed_error) << c.name;
  }
}

}  // namespace
}  // namespace tenon
