// gradcheck of every registered differentiable op, and gradcheck itself on wrong gradients.
#include "autograd/gradcheck.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tests/autograd/gradcheck_samples.h"

namespace tenon::test {
namespace {

const Samples& all_samples() {
  static const Samples samples = [] {
    Samples all;
    for (const auto& family : {pointwise_samples, matrix_samples, reduction_samples, shape_samples,
                               model_samples, vision_samples}) {
      for (GradcheckSample& sample : family()) all.push_back(std::move(sample));
    }
    return all;
  }();
  return samples;
}

/// Runs calls eagerly and notes which ops they were, under autograd as without it.
class CallLog final : public Interpreter {
 public:
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    names.insert(op.name);
    return apply_eager(op, inputs, attrs);
  }
  std::set<std::string> names;
};

/// The names of all ops that have samples.
std::set<std::string> sampled_ops() {
  std::set<std::string> names;
  for (const GradcheckSample& sample : all_samples()) names.insert(sample.op);
  return names;
}

class Gradcheck : public ::testing::TestWithParam<std::string> {};

TEST_P(Gradcheck, BackwardAgreesWithFiniteDifferences) {
  bool has_zero_size = false;
  bool has_strides = false;
  for (const GradcheckSample& sample : all_samples()) {
    if (sample.op != GetParam()) continue;
    SCOPED_TRACE(sample.what);
    CallLog log;
    {
      const InterpreterGuard guard(log);
      const NoGradGuard no_grad;
      sample.f(sample.inputs);
    }
    EXPECT_TRUE(log.names.contains(sample.op)) << "the sample does not call its op";
    const GradcheckResult result = gradcheck(sample.f, sample.inputs, sample.options);
    EXPECT_TRUE(result) << result.report;
    for (const Tensor& input : sample.inputs) {
      if (!input) continue;
      has_zero_size |= input.layout().numel() == 0;
      has_strides |= !input.is_contiguous();
    }
  }
  EXPECT_TRUE(has_strides) << "no sample with a strided or repeated operand";
  EXPECT_TRUE(has_zero_size) << "no sample without elements";
}

INSTANTIATE_TEST_SUITE_P(Ops, Gradcheck, ::testing::ValuesIn(sampled_ops()),
                         [](const auto& info) { return info.param; });

TEST(GradcheckCoverage, EveryDifferentiableOpHasASample) {
  const std::set<std::string> sampled = sampled_ops();
  for (const Op* op : all_ops()) {
    EXPECT_TRUE(op->not_differentiable || sampled.contains(op->name))
        << "[" << op->name << "] has no gradcheck sample; see tests/autograd/gradcheck_samples.h";
  }
  for (const std::string& op : sampled) EXPECT_NE(find_op(op), nullptr) << op;
}

/// The second output depends on the input, but no gradient flows through it.
std::vector<Tensor> cut_off(const std::vector<Tensor>& in) {
  return {square(in[0]), sum(in[0].detach())};
}

TEST(GradcheckReport, NamesInputOutputElementAndNumbers) {
  const GradcheckResult result = gradcheck(cut_off, {leaf({2, 2})});
  ASSERT_FALSE(result);
  EXPECT_NE(result.report.find("8 of 24 entries"), std::string::npos) << result.report;
  EXPECT_NE(
      result.report.find("d(output 1 element ())/d(input 0 element (0, 1)): backward gives 0, "
                         "the stencil 1"),
      std::string::npos)
      << result.report;
  EXPECT_NE(result.report.find("d(all outputs together)/d(input 0"), std::string::npos)
      << result.report;
}

TEST(GradcheckReport, SeveralInputsAndOutputs) {
  const auto f = [](const std::vector<Tensor>& in) {
    return std::vector{mul(in[0], in[1]), exp(in[1]), sum(sub(in[2], in[0]))};
  };
  EXPECT_TRUE(gradcheck(f, {leaf({2, 3}), leaf({3}, Memory::permuted, 2), leaf({2, 1})}));
}

TEST(GradcheckReport, RefusesWhatItCannotCheck) {
  const auto f = [](const std::vector<Tensor>& in) { return std::vector{exp(in[0])}; };
  expect_error<ValueError>([&] { gradcheck(f, {zeros({2}, {DType::float64})}); },
                           "no input requires a gradient");
  expect_error<ValueError>([&] { gradcheck(f, {zeros({2}).requires_grad_()}); },
                           "input 0 is float32(2,); needed a float64 leaf");
}

/// The gradient of f by in[0] with the cotangent in[1], as a function to check in turn.
TensorFunction gradient_of(Tensor (*f)(const Tensor&)) {
  return [f](const std::vector<Tensor>& in) {
    const Tensor output = f(in[0]);
    return grad(std::vector{output}, std::vector{in[0]}, std::vector{in[1]},
                {.create_graph = true});
  };
}

TEST(SecondDerivative, OfUnaryOps) {
  const std::map<std::string, Tensor (*)(const Tensor&)> ops = {
      {"exp", exp},
      {"sin", sin},
      {"cos", cos},
      {"tanh", tanh},
      {"sigmoid", sigmoid},
      {"erf", erf},
      {"relu", relu},
      {"abs", abs},
      {"square", square},
      {"reciprocal", reciprocal},
      {"silu", silu},
      {"gelu", [](const Tensor& x) { return gelu(x); }},
      {"gelu tanh", [](const Tensor& x) { return gelu(x, Approximate::tanh); }},
      {"softplus", [](const Tensor& x) { return softplus(x, 2); }},
      {"log", [](const Tensor& x) { return log(add(square(x), 1)); }},
      {"sqrt", [](const Tensor& x) { return sqrt(add(square(x), 1)); }},
      {"rsqrt", [](const Tensor& x) { return rsqrt(add(square(x), 1)); }},
      {"pow", [](const Tensor& x) { return pow(x, 3); }},
      {"quotient", [](const Tensor& x) { return div(x, add(square(x), 1)); }},
  };
  for (const auto& [name, f] : ops) {
    const GradcheckResult result =
        gradcheck(gradient_of(f), {leaf({2, 3}), leaf({2, 3}, Memory::permuted, 2)});
    EXPECT_TRUE(result) << name << ": " << result.report;
  }
}

TEST(SecondDerivative, OfBiasGelu) {
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    const auto f = [form](const std::vector<Tensor>& in) {
      const Tensor output = bias_gelu(in[0], in[1], form);
      return grad(std::vector{output}, std::vector{in[0], in[1]}, std::vector{in[2]},
                  {.create_graph = true});
    };
    const GradcheckResult result = gradcheck(
        f, {leaf({2, 3}), leaf({3}, Memory::narrowed, 2), leaf({2, 3}, Memory::contiguous, 3)});
    EXPECT_TRUE(result) << result.report;
  }
}

TEST(SecondDerivative, OfLinearGelu) {
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    const auto f = [form](const std::vector<Tensor>& in) {
      const Tensor output = linear_gelu(in[0], in[1], in[2], form);
      return grad(std::vector{output}, std::vector{in[0], in[1], in[2]}, std::vector{in[3]},
                  {.create_graph = true});
    };
    const GradcheckResult result =
        gradcheck(f, {leaf({2, 3}), leaf({2, 3}, Memory::permuted, 2),
                      leaf({2}, Memory::narrowed, 3), leaf({2, 2}, Memory::contiguous, 4)});
    EXPECT_TRUE(result) << result.report;
  }
}

TEST(SecondDerivative, OfLinearReluAndSilu) {
  for (const auto layer : {linear_relu, linear_silu}) {
    const auto f = [layer](const std::vector<Tensor>& in) {
      const Tensor output = layer(in[0], in[1], in[2]);
      return grad(std::vector{output}, std::vector{in[0], in[1], in[2]}, std::vector{in[3]},
                  {.create_graph = true});
    };
    const GradcheckResult result =
        gradcheck(f, {leaf({2, 3}), leaf({2, 3}, Memory::permuted, 2),
                      leaf({2}, Memory::narrowed, 3), leaf({2, 2}, Memory::contiguous, 4)});
    EXPECT_TRUE(result) << result.report;
  }
}

TEST(SecondDerivative, OfBroadcastProductsAndPowers) {
  const auto f = [](const std::vector<Tensor>& in) {
    const Tensor output = mul(pow(in[0], in[1]), div(in[1], in[0]));
    return grad(std::vector{output}, std::vector{in[0], in[1]}, std::vector{in[2]},
                {.create_graph = true});
  };
  const GradcheckResult result = gradcheck(
      f, {leaf_in(0.5, 2, {2, 1}), leaf_in(0.5, 2, {3}, Memory::contiguous, 2), leaf({2, 3})});
  EXPECT_TRUE(result) << result.report;
}

}  // namespace
}  // namespace tenon::test
