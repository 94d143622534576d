// Schedule verification: wrong rewrites that one draw of inputs on freshly initialized state lets
// through, and legal ones that it must not stop.
#include "schedule/verification.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "examples/attention_model.h"
#include "schedule/schedule.h"
#include "tests/support/models.h"

namespace tenon {
namespace verification_test {

using test::function_model;

constexpr std::int64_t kHidden = 8;

/// "special inputs: output 0, eval": where the first difference shows.
std::string first_failure(const VerifyReport& report) {
  for (const Comparison& c : report.results) {
    if (!c.ok) return c.trial + ": " + c.name + (c.training ? ", training" : ", eval");
  }
  return report.errors.empty() ? "" : report.errors[0];
}

template <class Model, class Pattern, class Wrong>
std::string failure_of(const nn::Child<Model>& model, const std::vector<ExampleInput>& examples,
                       Pattern pattern, Wrong wrong) {
  Schedule sch = create_schedule(model, examples);
  EXPECT_TRUE(verify(sch).ok()) << verify(sch).to_string();
  sch.replace(wrong, sch.find(pattern));
  return first_failure(verify(sch));
}

TEST(Verification, AFreshNormsWeightAndBiasAreMovedOffTheirValues) {
  const auto norm = [](const Tensor& x, const Tensor& w, const Tensor& b) {
    return layer_norm(x, w, b);
  };
  const auto plain = [](const Tensor& x, const Tensor& w, const Tensor& b) {
    return layer_norm(x, {kHidden}, w * 0.0 + 1.0, b);
  };
  const auto frozen = nn::make<nn::LayerNorm>(kHidden);
  frozen->requires_grad_(false);
  EXPECT_EQ(failure_of(frozen, {randn({2, kHidden})}, norm, plain), "drawn inputs: output 0, eval");
}

TEST(Verification, BuffersAreMovedAsWell) {
  struct Shifted : nn::Module {
    Shifted() : offset(register_buffer("offset", zeros({kHidden}))) {}
    Tensor forward(const Tensor& x) const { return tanh(x + offset); }
    Tensor offset;
  };
  EXPECT_EQ(failure_of(
                nn::make<Shifted>(), {randn({2, kHidden})},
                [](const Tensor& x, const Tensor& offset) { return tanh(x + offset); },
                [](const Tensor& x, const Tensor&) { return tanh(x); }),
            "drawn inputs: output 0, eval");
}

TEST(Verification, AMaskBufferStaysAMask) {
  struct Causal : nn::Module {
    Causal() : mask(register_buffer("mask", tril(ones({4, 4})))) {}
    Tensor forward(const Tensor& x) const {
      return softmax(masked_fill(x, eq(mask, 0), -HUGE_VAL), -1);
    }
    Tensor mask;
  };
  Schedule sch = create_schedule(nn::make<Causal>(), {randn({4, 4})});
  sch.replace(
      [](const Tensor& x, const Tensor& mask) { return masked_fill(x, lt(mask, 0.5), -HUGE_VAL); },
      sch.find([](const Tensor& x, const Tensor& mask) {
        return masked_fill(x, eq(mask, 0), -HUGE_VAL);
      }));
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
}

TEST(Verification, IndicesReachBeyondOne) {
  const auto failure = failure_of(
      nn::make<nn::Embedding>(5, kHidden), {TensorSpec{DType::int64, Shape{2, 3}, kCpu}},
      [](const Tensor& index, const Tensor& weight) { return embedding(index, weight); },
      [](const Tensor& index, const Tensor& weight) {
        return embedding(cast(gt(index, 0), DType::int64), weight);
      });
  EXPECT_EQ(failure, "drawn inputs: output 0, eval");
}

TEST(Verification, KinksAreMet) {
  EXPECT_EQ(failure_of(
                function_model([](const Tensor& x) { return relu(x) * 2.0; }), {randn({3, 5})},
                [](const Tensor& x) { return relu(x); },
                [](const Tensor& x) { return maximum(x, x * 0.0); }),
            "special inputs: gradient of input input, eval");
}

TEST(Verification, RowsWithoutKeysAreMet) {
  EXPECT_EQ(
      failure_of(
          function_model([](const Tensor& x, const Tensor& hidden) {
            return softmax(masked_fill(x, hidden, -HUGE_VAL), -1);
          }),
          {randn({5, 5}), zeros({5, 5}, {DType::boolean, kCpu})},
          [](const Tensor& x, const Tensor& hidden) { return masked_fill(x, hidden, -HUGE_VAL); },
          [](const Tensor& x, const Tensor& hidden) { return masked_fill(x, hidden, -1e30); }),
      "inputs at constants: output 0, eval");
}

TEST(Verification, ExponentialsWithoutTheirMaximumOverflow) {
  const auto naive = [](const Tensor& x) {
    const Tensor numerators = exp(x);
    return numerators / sum(numerators, {-1}, true);
  };
  EXPECT_NE(
      failure_of(
          nn::make<tutorial::Attention>(kHidden, 2), {{"hidden_states", randn({2, 5, kHidden})}},
          [](const Tensor& x) { return softmax(x, -1); }, naive),
      "");
}

TEST(Verification, GradientsThatOverflowBehindABranchNotTaken) {
  EXPECT_EQ(failure_of(
                function_model([](const Tensor& x) { return softplus(x); }), {randn({3, 5})},
                [](const Tensor& x) { return softplus(x); },
                [](const Tensor& x) { return where(gt(x, 20), x, log(exp(x) + 1.0)); }),
            "inputs of all magnitudes: gradient of input input, eval");
}

TEST(Verification, ABatchOfOneAndAnotherTail) {
  Schedule sch = create_schedule(nn::make<tutorial::Attention>(kHidden, 2),
                                 {{"hidden_states", randn({2, 5, kHidden})}});
  const VerifyReport report = verify(sch, {.whole = true});
  EXPECT_TRUE(report.ok()) << report.to_string();
  using Sizes = std::vector<std::vector<std::int64_t>>;
  const auto sizes_of = [&](const std::string& name) {
    for (const TrialSummary& trial : report.trials) {
      if (trial.name == name) return trial.sizes;
    }
    return Sizes{};
  };
  EXPECT_EQ(sizes_of("drawn inputs"), (Sizes{{3, 7, kHidden}}));
  EXPECT_EQ(sizes_of("other sizes"), (Sizes{{1, 9, kHidden}}));
  EXPECT_EQ(sizes_of("traced sizes"), (Sizes{{1, 5, kHidden}}));
}

TEST(Verification, DropoutShapesAreCompared) {
  Schedule sch = create_schedule(
      function_model([](const Tensor& x) { return dropout(x, 0.5).transpose(0, 1); }),
      {randn({3, 5})});
  sch.replace([](const Tensor& x) { return dropout(x.transpose(0, 1), 0.5); },
              sch.find([](const Tensor& x) { return dropout(x, 0.5).transpose(0, 1); }));
  const VerifyReport report = verify(sch);
  EXPECT_EQ(report.masks_missing, std::vector<std::string>{"site 0 p 0.5 on 3 rows of 7"});
  EXPECT_EQ(report.masks_added, std::vector<std::string>{"site 0 p 0.5 on 7 rows of 3"});
}

TEST(Verification, NothingIsPrintedAndTheModelStaysAsItIs) {
  const auto model = nn::make<nn::BatchNorm2d>(3);
  Schedule sch = create_schedule(model, {randn({2, 3, 4, 4})});
  sch.print("printed");
  std::ostringstream printed;
  std::ostream* before = set_print_stream(&printed);
  const VerifyReport report = verify(sch);
  set_print_stream(before);
  EXPECT_TRUE(report.ok()) << report.to_string();
  EXPECT_EQ(printed.str(), "");
  EXPECT_EQ(model->running_mean.to_vector<float>(), std::vector<float>(3, 0));
  EXPECT_EQ(model->weight.to_vector<float>(), std::vector<float>(3, 1));
}

TEST(Verification, ParametersThatTheScheduleBringsAreItsOwn) {
  struct LowRank : nn::Module {
    LowRank()
        : base(add<nn::Linear>("base", kHidden, kHidden)),
          down(register_parameter("down", randn({2, kHidden}))),
          up(register_parameter("up", zeros({kHidden, 2}))) {}
    Tensor forward(const Tensor& x) const { return base(x) + linear(linear(x, down), up); }
    nn::Child<nn::Linear> base;
    Tensor down, up;
  };
  struct Model : nn::Module {
    Model() : mix(add<nn::Linear>("mix", kHidden, kHidden)) {}
    Tensor forward(const Tensor& x) const { return tanh(mix(x)); }
    nn::Child<nn::Linear> mix;
  };
  Schedule sch = create_schedule(nn::make<Model>(), {randn({2, kHidden})});
  sch["mix"].replace(nn::make<LowRank>(), {.weights = {{"base.weight", "mix.weight"},
                                                       {"base.bias", "mix.bias"},
                                                       {"down", fresh()},
                                                       {"up", fresh()}}});
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
}

TEST(Verification, TheReportNamesTheTrialsAndTheCost) {
  Schedule sch =
      create_schedule(function_model([](const Tensor& x) { return tanh(x); }), {randn({3, 4})});
  EXPECT_EQ(verify(sch).summary().substr(0, 31), "verified: nothing was rewritten");
  const std::string text = verify(sch, {.whole = true}).to_string();
  for (const char* part :
       {"ok   output 0 (eval): |scheduled - unscheduled| 0;",
        "drawn inputs: 4 of 4 results agree on inputs (3, 7)", "other sizes: 4 of 4 results agree",
        "verified 1 rewritten region of 1 structure: "}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

}  // namespace verification_test
}  // namespace tenon
