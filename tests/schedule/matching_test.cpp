// Patterns: what matches, what does not, and what a find says about near misses.
#include <gtest/gtest.h>

#include "examples/attention_model.h"
#include "schedule/schedule.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;

auto qkv_pattern(std::int64_t heads, std::vector<std::int64_t> order = {0, 2, 1, 3},
                 std::string regex = "[qkv]_proj") {
  return [=](const Tensor& x) {
    const Tensor y = call_module(regex, x);
    return y.view({y.size(0), y.size(1), heads, -1}).permute(order);
  };
}

Schedule attention_schedule(std::int64_t hidden = 16, std::int64_t heads = 2) {
  return create_schedule(nn::make<tutorial::Attention>(hidden, heads),
                         {{"hidden_states", randn({2, 5, hidden})}});
}

TEST(Matching, FindsTheTutorialsThreeBranchesFromTheTop) {
  EXPECT_EQ(attention_schedule().find(qkv_pattern(2)).to_string(),
            "[[('self_attn', q_proj), ('self_attn', view), ('self_attn', permute)], "
            "[('self_attn', k_proj), ('self_attn', view_1), ('self_attn', permute_1)], "
            "[('self_attn', v_proj), ('self_attn', view_2), ('self_attn', permute_2)]]");
}

TEST(Matching, PathsAreRelativeToTheSchedule) {
  EXPECT_EQ(attention_schedule()["self_attn"].find(qkv_pattern(2)).to_string(),
            "[[('', q_proj), ('', view), ('', permute)], [('', k_proj), ('', view_1), "
            "('', permute_1)], [('', v_proj), ('', view_2), ('', permute_2)]]");
}

TEST(Matching, TheModelsOwnFunctionIsAPattern) {
  EXPECT_EQ(attention_schedule().find(tutorial::scaled_dot_product).to_string(),
            "[[('self_attn', transpose), ('self_attn', matmul), ('self_attn', div), "
            "('self_attn', softmax), ('self_attn', dropout), ('self_attn', matmul_1)]]");
}

TEST(Matching, FunctionalSpellingMatchesModules) {
  const Schedule sch = create_schedule(nn::make<test::ResidualMlp>(8), {randn({3, 8})});
  const Matches matches = sch.find(
      [](const Tensor& x, const Tensor& w, const Tensor& b) { return gelu(linear(x, w, b)); });
  EXPECT_EQ(matches.to_string(), "[[('', up), ('', act)]]");
}

struct NearMissCase {
  const char* name;
  std::function<Matches(const Schedule&)> find;
  std::string reason;  // in explain()
};

class NearMisses : public ::testing::TestWithParam<NearMissCase> {};

TEST_P(NearMisses, StayUnmatchedAndSayWhy) {
  const Schedule sch = attention_schedule();
  const std::string before = to_text(sch.graph());
  const Matches matches = GetParam().find(sch);
  EXPECT_TRUE(matches.empty()) << matches;
  EXPECT_NE(matches.explain().find(GetParam().reason), std::string::npos) << matches.explain();
  EXPECT_EQ(to_text(sch.graph()), before);
}

INSTANTIATE_TEST_SUITE_P(
    All, NearMisses,
    ::testing::Values(
        NearMissCase{"OtherHeadCount", [](const Schedule& s) { return s.find(qkv_pattern(4)); },
                     "self_attn.view has shape=(s0, s1, 2, 8); the pattern has "},
        NearMissCase{"OtherPermutation",
                     [](const Schedule& s) {
                       return s.find(qkv_pattern(2, {0, 2, 3, 1}));
                     },
                     "self_attn.permute has dims=(0, 2, 1, 3); the pattern has (0, 2, 3, 1)"},
        NearMissCase{"PrefixOfAName",
                     [](const Schedule& s) {
                       return s.find(qkv_pattern(2, {0, 2, 1, 3}, "q_pro"));
                     },
                     "module 'self_attn.q_proj' does not match \"q_pro\" as a whole"},
        NearMissCase{"OtherDropout",
                     [](const Schedule& s) {
                       return s.find([](const Tensor& x, const Tensor& v) {
                         return matmul(dropout(softmax(x, -1), 0.2), v);
                       });
                     },
                     "self_attn.dropout has p=0.1; the pattern has 0.2"},
        NearMissCase{"OtherAxis",
                     [](const Schedule& s) {
                       return s.find([](const Tensor& x) { return dropout(softmax(x, 1), any()); });
                     },
                     "self_attn.softmax has dim=3; the pattern has 1"},
        NearMissCase{"OtherScale",
                     [](const Schedule& s) {
                       return s.find([](const Tensor& q, const Tensor& k) {
                         return softmax(matmul(q, k.transpose(-2, -1)) / 4.0, -1);
                       });
                     },
                     "the pattern has 4"},
        NearMissCase{"AcrossModules",
                     [](const Schedule& s) {
                       return s.find([](const Tensor& x, const Tensor& w, const Tensor& b) {
                         return linear(reshape(x, {x.size(0), x.size(1), -1}), w, b);
                       });
                     },
                     "lies inside another module than the rest"}),
    [](const auto& info) { return info.param.name; });

TEST(Matching, AnotherProjectionNameStaysUnmatched) {
  struct Model : nn::Module {
    Model() : q_proj2(add<nn::Linear>("q_proj2", 8, 8)) {}
    Tensor forward(const Tensor& x) const {
      return q_proj2(x).view({x.size(0), x.size(1), 2, -1}).permute({0, 2, 1, 3});
    }
    nn::Child<nn::Linear> q_proj2;
  };
  const Schedule sch = create_schedule(nn::make<Model>(), {randn({2, 3, 8})});
  const Matches matches = sch.find(qkv_pattern(2));
  EXPECT_TRUE(matches.empty());
  EXPECT_NE(matches.explain().find("module 'q_proj2' does not match \"[qkv]_proj\" as a whole"),
            std::string::npos)
      << matches.explain();
}

TEST(Matching, AnIntermediateUsedElsewhereIsNoMatch) {
  const auto model = function_model([](const Tensor& x) {
    const Tensor y = exp(x);
    return relu(y) + y;
  });
  const Schedule sch = create_schedule(model, {randn({3})});
  const Matches matches = sch.find([](const Tensor& x) { return relu(exp(x)); });
  EXPECT_TRUE(matches.empty());
  EXPECT_EQ(matches.explain(),
            "near miss at relu: %exp is an intermediate of the match and is also used by add")
      << matches.explain();
}

TEST(Matching, AnIntermediateThatIsAnOutputIsNoMatch) {
  struct Model : nn::Module {
    std::vector<Tensor> forward(const Tensor& x) const {
      const Tensor y = exp(x);
      return {relu(y), y};
    }
  };
  const Schedule sch = create_schedule(nn::make<Model>(), {randn({3})});
  const Matches matches = sch.find([](const Tensor& x) { return relu(exp(x)); });
  EXPECT_TRUE(matches.empty());
  EXPECT_NE(matches.explain().find("also used by the graph's output"), std::string::npos);
}

TEST(Matching, IndependentOpsInAnotherOrderMatch) {
  const auto pattern = [](const Tensor& x, const Tensor& y) { return exp(x) * relu(y); };
  const auto exp_first = function_model([](const Tensor& x, const Tensor& y) {
    const Tensor a = exp(x);
    const Tensor b = relu(y);
    return a * b;
  });
  const auto relu_first = function_model([](const Tensor& x, const Tensor& y) {
    const Tensor b = relu(y);
    const Tensor a = exp(x);
    return a * b;
  });
  for (const Schedule& sch : {create_schedule(exp_first, {randn({3}), randn({3})}),
                              create_schedule(relu_first, {randn({3}), randn({3})})}) {
    const Matches matches = sch.find(pattern);
    ASSERT_EQ(matches.size(), 1U);
    EXPECT_EQ(matches[0].inputs, sch.graph().inputs());
  }
}

TEST(Matching, CommutativeOperandsMatchBothWays) {
  const auto model = function_model([](const Tensor& x, const Tensor& y) { return y + exp(x); });
  const Schedule sch = create_schedule(model, {randn({3}), randn({3})});
  const Matches matches = sch.find([](const Tensor& a, const Tensor& b) { return exp(a) + b; });
  ASSERT_EQ(matches.size(), 1U);
  EXPECT_EQ(matches[0].inputs, sch.graph().inputs());
}

TEST(Matching, EdgesCount) {
  // (x + y)·y - x does not match (x + y) - (x·y), which has the same ops in the same order.
  const auto model = function_model([](const Tensor& x, const Tensor& y) {
    const Tensor sum = x + y;
    const Tensor product = x * y;
    return sum - product;
  });
  const Schedule sch = create_schedule(model, {randn({3}), randn({3})});
  EXPECT_TRUE(sch.find([](const Tensor& x, const Tensor& y) { return (x + y) * y - x; }).empty());
}

TEST(Matching, AParameterUsedTwiceMustBeOneValue) {
  const auto model = function_model([](const Tensor& x, const Tensor& y) { return exp(x) * y; });
  const Schedule sch = create_schedule(model, {randn({3}), randn({3})});
  EXPECT_TRUE(sch.find([](const Tensor& x) { return exp(x) * x; }).empty());
}

TEST(Matching, MatchesDoNotOverlap) {
  const auto model =
      function_model([](const Tensor& x) { return relu(relu(relu(relu(relu(x))))); });
  const Schedule sch = create_schedule(model, {randn({3})});
  EXPECT_EQ(sch.find([](const Tensor& x) { return relu(relu(x)); }).size(), 2U);
}

TEST(Matching, RegexMatchesWholeNamesAndPaths) {
  const auto model = nn::make<test::Stack<tutorial::Attention>>(12, 8, 2);
  const Schedule sch = create_schedule(model, {randn({1, 2, 8})});
  EXPECT_EQ(sch.find("q_proj").size(), 12U);
  EXPECT_EQ(sch.find("layer\\.1").size(), 1U);
  EXPECT_EQ(sch.find("layer\\.1\\.self_attn\\.[qk]_proj").size(), 2U);
  EXPECT_EQ(sch["layer.1"].find("self_attn\\.[qk]_proj").size(), 2U);
  EXPECT_TRUE(sch.find("q_pro").empty());
  EXPECT_EQ(sch.find(qkv_pattern(2)).size(), 36U);
  EXPECT_EQ(sch["layer.3"].find(qkv_pattern(2)).size(), 3U);
}

TEST(Matching, AWholeUserModuleIsOneCall) {
  const Schedule sch = attention_schedule();
  const Matches matches = sch.find([](const Tensor& x) { return call_module("self_attn", x); });
  ASSERT_EQ(matches.size(), 1U);
  EXPECT_EQ(matches[0].nodes.size(), 17U);
}

TEST(Patterns, RefuseWhatCannotBeOne) {
  const Schedule sch = attention_schedule();
  EXPECT_ERROR(ScheduleError, "the pattern calls no op: it returns a parameter as it is",
               sch.find([](const Tensor& x) { return x; }));
  EXPECT_ERROR(ScheduleError, "the pattern never uses its parameter 1",
               sch.find([](const Tensor& x, const Tensor&) { return exp(x); }));
  EXPECT_ERROR(ScheduleError, "the pattern calls exp without using its result",
               sch.find([](const Tensor& x) {
                 exp(x);
                 return relu(x);
               }));
  EXPECT_ERROR(TraceError,
               "a pattern function asked for a whole shape or rank, which is unknown until the "
               "pattern is matched; use size(axis)",
               sch.find([](const Tensor& x) { return x.dim() == 2 ? exp(x) : relu(x); }));
  EXPECT_ERROR(
      TraceError,
      "a pattern function cannot compare sizes or turn them into numbers: they are unknown "
      "until the pattern is matched",
      sch.find([](const Tensor& x) { return x.size(0) > 3 ? exp(x) : relu(x); }));
  const Tensor outside = ones({3});
  EXPECT_ERROR(ScheduleError,
               "[add] a pattern computes on its parameters alone; an operand is another tensor",
               sch.find([&](const Tensor& x) { return x + outside; }));
}

TEST(Patterns, RefuseWhatIsNoResult) {
  const Schedule sch = attention_schedule();
  EXPECT_ERROR(ScheduleError, "the pattern returns no tensor", sch.find([](const Tensor& x) {
    exp(x);
    return std::vector<Tensor>();
  }));
  EXPECT_ERROR(ScheduleError,
               "the pattern returns a parameter as it is, as result 1; needed results of ops",
               sch.find([](const Tensor& x) { return std::pair(exp(x), x); }));
  EXPECT_ERROR(ScheduleError, "the pattern returns an undefined tensor as result 1",
               sch.find([](const Tensor& x) { return std::pair(exp(x), Tensor()); }));
  EXPECT_ERROR(ScheduleError, "the pattern returns the result of exp twice",
               sch.find([](const Tensor& x) {
                 const Tensor y = exp(x);
                 return std::pair(y, y);
               }));
  const auto lin = nn::make<nn::Linear>(1, 1);
  EXPECT_ERROR(ScheduleError,
               "the pattern returns a parameter as it is, as result 1; needed results of ops",
               sch.find([&](const Tensor& x) { return std::pair(lin(x), lin->weight); }));
}

TEST(Patterns, RefuseInvalidNames) {
  const Schedule sch = attention_schedule();
  const std::string in_pattern = test::error_text<ScheduleError>(
      [&] { sch.find([](const Tensor& x) { return call_module("[qkv", x); }); });
  EXPECT_TRUE(in_pattern.starts_with("call_module: '[qkv' is not a valid regular expression: "))
      << in_pattern;
  const std::string in_find = test::error_text<ScheduleError>([&] { sch.find("[qkv"); });
  EXPECT_TRUE(in_find.starts_with("find: '[qkv' is not a valid regular expression: ")) << in_find;
  EXPECT_ERROR(TraceError,
               "call_module(\"q_proj\") was called outside of a pattern; call the module itself",
               call_module("q_proj", ones({3})));
  EXPECT_ERROR(TraceError,
               "call_module(Linear) was called outside of a pattern; call the module itself",
               call_module<nn::Linear>(ones({3})));
}

TEST(Patterns, PrintWhatTheyCall) {
  const auto text = [](const auto& pattern) { return record_pattern(pattern).to_string(); };
  EXPECT_EQ(text([](const Tensor& x) { return softmax(call_module("[qk]", x), -1); }),
            "softmax(call_module(\"[qk]\", %0), dim=-1)");
  EXPECT_EQ(text([](const Tensor& x) { return relu(call_module<nn::Linear>(x)); }),
            "relu(call_module<Linear>(%0))");
  EXPECT_EQ(text([](const Tensor& x) {
              const Tensor y = exp(x);
              return std::pair(relu(y), tanh(y));
            }),
            "%1 = exp(%0); relu(%1), tanh(%1)");
}

}  // namespace
}  // namespace tenon
