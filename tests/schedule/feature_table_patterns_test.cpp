// Rows 7 and 9 of the feature table: edges, order, constants and wildcards. The shapes of subgraphs are in
// matching_cases_test.cpp, row 8 (spellings) is in matching_spellings_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "examples/attention_model.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace {

using test::function_model;

template <class F>
Schedule schedule_of(F function, const std::vector<ExampleInput>& inputs) {
  return create_schedule(function_model(function), inputs);
}

TEST(FeatureTable, Row07_EdgesDecide) {
  // W6: the same ops in the same order, wired otherwise.
  const auto wired = schedule_of([](const Tensor& x, const Tensor& y) { return (x + y) - (x * y); },
                                 {randn({3}), randn({3})});
  EXPECT_TRUE(wired.find([](const Tensor& x, const Tensor& y) { return (x + y) * y - x; }).empty());
  EXPECT_EQ(wired.find([](const Tensor& x, const Tensor& y) { return (x + y) - (x * y); }).size(),
            1U);
  // What does not commute keeps its sides.
  const auto difference = schedule_of([](const Tensor& x, const Tensor& y) { return exp(x) - y; },
                                      {randn({3}), randn({3})});
  EXPECT_TRUE(difference.find([](const Tensor& x, const Tensor& y) { return y - exp(x); }).empty());
  EXPECT_EQ(difference.find([](const Tensor& x, const Tensor& y) { return exp(x) - y; }).size(),
            1U);
}

TEST(FeatureTable, Row07_ListOrderDoesNotDecide) {
  // Three independent chains, recorded in every order that a program may have.
  const auto pattern = [](const Tensor& x, const Tensor& y, const Tensor& z) {
    return exp(x) * tanh(y) - sigmoid(z);
  };
  struct Model : nn::Module {
    explicit Model(int permutation) : order(permutation) {}
    Tensor forward(const Tensor& x, const Tensor& y, const Tensor& z) const {
      Tensor a, b, c;
      const std::function<void()> steps[] = {[&] { a = exp(x); }, [&] { b = tanh(y); },
                                             [&] { c = sigmoid(z); }};
      int picks[] = {0, 1, 2};
      for (int i = 0; i < order; ++i) std::next_permutation(picks, picks + 3);
      for (int pick : picks) steps[pick]();
      return a * b - c;
    }
    int order;
  };
  for (int order = 0; order < 6; ++order) {
    const Schedule sch =
        create_schedule(nn::make<Model>(order), {randn({3}), randn({3}), randn({3})});
    const Matches matches = sch.find(pattern);
    ASSERT_EQ(matches.size(), 1U) << order << matches.explain();
    EXPECT_EQ(matches[0].inputs, sch.graph().inputs()) << order;
  }
}

/// The pattern of row 9 on a model of `heads` heads.
Matches find_heads(std::int64_t heads, const std::function<Tensor(const Tensor&)>& pattern) {
  const Schedule sch = create_schedule(nn::make<tutorial::Attention>(48, heads),
                                       {{"hidden_states", randn({2, 5, 48})}});
  return sch.find(pattern);
}

TEST(FeatureTable, Row09_ConstantsDecideAndAnyIsAWildcard) {
  const auto sixteen = [](const Tensor& x) { return test::qkv_pattern(16)(x); };
  const auto wildcard = [](const Tensor& x) {
    const Tensor y = call_module("[qkv]_proj", x);
    return y.view({y.size(0), y.size(1), any(), any()}).permute({0, 2, 1, 3});
  };
  EXPECT_EQ(find_heads(16, sixteen).size(), 3U);
  const Matches twelve = find_heads(12, sixteen);
  EXPECT_TRUE(twelve.empty());
  EXPECT_NE(twelve.explain().find("self_attn.view has shape=(s0, s1, 12, 4); the pattern has "),
            std::string::npos)
      << twelve.explain();
  EXPECT_EQ(find_heads(16, wildcard).size(), 3U);
  EXPECT_EQ(find_heads(12, wildcard).size(), 3U);
}

/// A model with one constant, and patterns with the same one, another one and a wildcard.
struct ConstantCase {
  const char* name;
  std::function<Tensor(const Tensor&)> model;
  std::function<Tensor(const Tensor&)> other;
  std::function<Tensor(const Tensor&)> wildcard;  // empty: the attribute takes none
};

std::ostream& operator<<(std::ostream& stream, const ConstantCase& c) { return stream << c.name; }

class FeatureTableConstants : public ::testing::TestWithParam<ConstantCase> {};

TEST_P(FeatureTableConstants, Row09_AnotherConstantDoesNotMatch) {
  const Schedule sch = schedule_of(GetParam().model, {randn({2, 3, 4, 4})});
  EXPECT_EQ(sch.find(GetParam().model).size(), 1U);
  const Matches other = sch.find(GetParam().other);
  EXPECT_TRUE(other.empty());
  EXPECT_NE(other.explain().find("the pattern has "), std::string::npos) << other.explain();
  if (GetParam().wildcard) {
    EXPECT_EQ(sch.find(GetParam().wildcard).size(), 1U);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, FeatureTableConstants,
    ::testing::Values(
        ConstantCase{"Factor", [](const Tensor& x) { return exp(x) * 3.0; },
                     [](const Tensor& x) { return exp(x) * 100.0; },
                     [](const Tensor& x) { return exp(x) * any(); }},
        ConstantCase{"Probability", [](const Tensor& x) { return dropout(exp(x), 0.9); },
                     [](const Tensor& x) { return dropout(exp(x), 0.1); },
                     [](const Tensor& x) { return dropout(exp(x), any()); }},
        ConstantCase{"SoftmaxAxis", [](const Tensor& x) { return softmax(exp(x), 0); },
                     [](const Tensor& x) { return softmax(exp(x), -1); },
                     [](const Tensor& x) { return softmax(exp(x), any()); }},
        ConstantCase{"Order",
                     [](const Tensor& x) {
                       return exp(x).permute({0, 1, 3, 2});
                     },
                     [](const Tensor& x) {
                       return exp(x).permute({3, 2, 1, 0});
                     },
                     {}},
        ConstantCase{"Approximation",
                     [](const Tensor& x) { return gelu(exp(x), Approximate::tanh); },
                     [](const Tensor& x) { return gelu(exp(x)); },
                     {}},
        ConstantCase{"Exponent", [](const Tensor& x) { return pow(exp(x), 3.0); },
                     [](const Tensor& x) { return pow(exp(x), 2.0); },
                     [](const Tensor& x) { return pow(exp(x), any()); }},
        ConstantCase{"Mode",
                     [](const Tensor& x) { return dropout(exp(x), 0.1, DropoutMode::eval); },
                     [](const Tensor& x) { return dropout(exp(x), 0.1); },
                     {}},
        ConstantCase{"Epsilon",
                     [](const Tensor& x) { return layer_norm(exp(x), {4}, {}, {}, 1e-3); },
                     [](const Tensor& x) { return layer_norm(exp(x), {4}, {}, {}, 1e-5); },
                     [](const Tensor& x) { return layer_norm(exp(x), {4}, {}, {}, any()); }}),
    [](const auto& one) { return one.param.name; });

TEST(FeatureTable, Row09_ASizeOfTheMatchedValueIsNoConstant) {
  const auto model = [](const Tensor& x) {
    return matmul(x, x.transpose(-2, -1)) / sqrt(x.size(-1));
  };
  const Schedule sch = schedule_of(model, {randn({2, 4, 16})});
  EXPECT_EQ(sch.find(model).size(), 1U);  // √ of the value's own size, whatever it is
  EXPECT_TRUE(
      sch.find([](const Tensor& x) { return matmul(x, x.transpose(-2, -1)) / 4.0; }).empty());
  EXPECT_TRUE(
      sch.find([](const Tensor& x) { return matmul(x, x.transpose(-2, -1)) / sqrt(x.size(-2)); })
          .empty());
}

}  // namespace
}  // namespace tenon
