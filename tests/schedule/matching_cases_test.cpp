// Rows 7 and 9 of the feature table: the shapes of subgraphs that users look for, each with what it must
// not be taken for; constants.
#include <gtest/gtest.h>

#include "schedule/schedule.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using T = const Tensor&;

struct TwoLinears : nn::Module {
  explicit TwoLinears(bool functional)
      : fc1(add<nn::Linear>("fc1", 4, 4)),
        fc2(add<nn::Linear>("fc2", 4, 4)),
        fc10(add<nn::Linear>("fc10", 4, 4)),
        act(add<nn::ReLU>("act")),
        is_functional(functional) {}
  Tensor forward(T x) const {
    const Tensor a = fc1(x);
    const Tensor b = fc2(is_functional ? relu(a) : act(a));
    return fc10(is_functional ? relu(b) : act(b));
  }
  nn::Child<nn::Linear> fc1, fc2, fc10;
  nn::Child<nn::ReLU> act;
  bool is_functional;
};

struct ConvNormRelu : nn::Module {
  explicit ConvNormRelu(bool tracks)
      : conv(add<nn::Conv2d>("conv", 2, 3, 3)),
        bn(add<nn::BatchNorm2d>("bn", 3, 1e-5, 0.1, true, tracks)) {}
  Tensor forward(T x) const { return relu(bn(conv(x))); }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> bn;
};

Schedule two_linears(bool functional) {
  return create_schedule(nn::make<TwoLinears>(functional), {randn({2, 4})});
}

TEST(FeatureTable, Row07_TheModelItselfIsFoundOnce) {
  const auto f = [](T x, T y) { return tanh(relu(x) * y + x) - y; };
  const Schedule sch = create_schedule(function_model(f), {randn({3}), randn({3})});
  const Matches matches = sch.find(f);
  ASSERT_EQ(matches.size(), 1U);
  EXPECT_EQ(matches[0].nodes, sch.graph().order());
  EXPECT_EQ(matches[0].inputs, sch.graph().inputs());
  EXPECT_EQ(matches[0].outputs, sch.graph().outputs());
}

TEST(FeatureTable, Row07_FunctionalPatternFindsModules) {
  const auto f = [](T x, T w, T b) { return relu(linear(x, w, b)); };
  EXPECT_EQ(two_linears(false).find(f).to_string(),
            "[[('', fc1), ('', act)], [('', fc2), ('', act_1)]]");
}

TEST(FeatureTable, Row07_ModulePatternFindsFunctions) {
  const auto lin = nn::make<nn::Linear>(1, 1);
  const auto act = nn::make<nn::ReLU>();
  const auto pattern = [&](T x) { return act(lin(x)); };
  for (const bool functional : {false, true}) {
    EXPECT_EQ(two_linears(functional).find(pattern).size(), 2U) << functional;
  }
  const auto model =
      function_model([w = randn({4, 4}), b = randn({4})](T x) { return relu(linear(x, w, b)); });
  EXPECT_EQ(create_schedule(model, {randn({2, 4})}).find(pattern).size(), 1U);
  const auto computed =
      function_model([b = randn({4})](T x, T w) { return relu(linear(x, w, b)); });
  const Matches matches = create_schedule(computed, {randn({2, 4}), randn({4, 4})}).find(pattern);
  EXPECT_TRUE(matches.empty());
  EXPECT_EQ(matches.explain(),
            "near miss at relu: %input_1 is no state of the model, as the pattern's module has");
}

TEST(FeatureTable, Row07_OneModuleCalledTwiceInAPatternIsOneWeight) {
  const auto lin = nn::make<nn::Linear>(1, 1);
  const auto twice = [&](T x) { return lin(relu(lin(x))); };
  EXPECT_TRUE(two_linears(false).find(twice).empty());
  const auto model = function_model(
      [w = randn({4, 4}), b = randn({4})](T x) { return linear(relu(linear(x, w, b)), w, b); });
  EXPECT_EQ(create_schedule(model, {randn({2, 4})}).find(twice).size(), 1U);
}

TEST(FeatureTable, Row07_FunctionsAndModulesMixInAPattern) {
  const auto lin = nn::make<nn::Linear>(1, 1);
  EXPECT_EQ(two_linears(false).find([&](T x) { return relu(lin(x)); }).size(), 2U);
  EXPECT_EQ(two_linears(true).find([](T x) { return relu(call_module("fc.", x)); }).size(), 2U);
}

TEST(FeatureTable, Row07_NormAndRelu) {
  const auto bn = nn::make<nn::BatchNorm2d>(3, 1e-5, 0.1, true, false);
  const Schedule sch = create_schedule(nn::make<ConvNormRelu>(false), {randn({2, 2, 8, 8})});
  EXPECT_EQ(sch.find([&](T x) { return relu(bn(x)); }).to_string(), "[[('', bn), ('', relu)]]");
}

TEST(FeatureTable, Row07_NormThatMovesItsStatisticsIsNoIntermediate) {
  const auto bn = nn::make<nn::BatchNorm2d>(3);
  const Schedule sch = create_schedule(nn::make<ConvNormRelu>(true), {randn({2, 2, 8, 8})});
  const Matches matches = sch.find([&](T x) { return relu(bn(x)); });
  EXPECT_TRUE(matches.empty());
  EXPECT_EQ(
      matches.explain(),
      "near miss at relu: %bn:3 is an intermediate of the match and is also used by the write "
      "of %bn.running_mean");
  // A pattern that returns the new statistics too loses nothing.
  const Matches whole = sch.find([&](T x, T mean, T variance, T weight, T bias) {
    const Tensor operands[] = {x, mean, variance, weight, bias};
    const Attrs attrs =
        sch.graph().node(matches.near_misses().empty() ? 0 : sch.graph().order()[1]).attrs;
    const std::vector<Tensor> results = apply(get_op("batch_norm"), operands, attrs);
    return std::tuple(relu(results[0]), results[3], results[4]);
  });
  ASSERT_EQ(whole.size(), 1U) << whole.explain();
  EXPECT_EQ(whole[0].outputs.size(), 3U);
  EXPECT_EQ(match_fault(sch.graph(), whole[0]), "");
}

TEST(FeatureTable, Row07_LinearAndReluTwice) {
  EXPECT_EQ(two_linears(true).find([](T x, T w, T b) { return relu(linear(x, w, b)); }).to_string(),
            "[[('', fc1), ('', relu)], [('', fc2), ('', relu_1)]]");
}

TEST(FeatureTable, Row07_TwoPathsMeet) {
  const auto f = [](T x) { return relu(exp(x)) + tanh(x); };
  const auto other_way = function_model([](T x) {
    const Tensor b = tanh(x);
    const Tensor a = exp(x);
    return b + relu(a);
  });
  EXPECT_EQ(create_schedule(function_model(f), {randn({3})}).find(f).size(), 1U);
  EXPECT_EQ(create_schedule(other_way, {randn({3})}).find(f).size(), 1U);
  const auto other_inputs = function_model([](T x, T y) { return relu(exp(x)) + tanh(y); });
  EXPECT_TRUE(create_schedule(other_inputs, {randn({3}), randn({3})}).find(f).empty());
}

TEST(FeatureTable, Row07_ATreeOfCommutativeOps) {
  const auto model = function_model(
      [](T x, T y) { return (relu(y) * (exp(x) + y)) + ((tanh(y) + exp(y)) * relu(x)); });
  const Schedule sch = create_schedule(model, {randn({3}), randn({3})});
  const Matches matches =
      sch.find([](T x, T y) { return (relu(x) * (exp(y) + tanh(y))) + ((y + exp(x)) * relu(y)); });
  ASSERT_EQ(matches.size(), 1U) << matches.explain();
  EXPECT_EQ(matches[0].inputs, sch.graph().inputs());
  EXPECT_EQ(matches[0].nodes.size(), sch.graph().order().size());
}

TEST(FeatureTable, Row07_AllChoicesAreTriedWhenALaterOneDecides) {
  // The first sum fits both ways round; only one of them goes with the last operand.
  const auto model = function_model([](T x, T y) { return tanh(exp(x) + exp(y)) * x; });
  const auto pattern = [](T a, T b) { return tanh(exp(a) + exp(b)) * b; };
  const Schedule sch = create_schedule(model, {randn({3}), randn({3})});
  const Matches matches = sch.find(pattern);
  ASSERT_EQ(matches.size(), 1U) << matches.explain();
  EXPECT_EQ(matches[0].inputs, (std::vector{sch.graph().inputs()[1], sch.graph().inputs()[0]}));
}

TEST(FeatureTable, Row07_ThreeParallelBranches) {
  const auto model = function_model([](T x) {
    const Tensor a = relu(x * 2.0);
    const Tensor b = relu(x * 3.0);
    const Tensor c = relu(x * 4.0);
    return matmul(matmul(a, b), c);
  });
  const Schedule sch = create_schedule(model, {randn({3, 3})});
  EXPECT_EQ(sch.find([](T x) { return relu(x * static_cast<double>(any())); }).size(), 3U);
  const Matches matches = sch.find([](T x) { return relu(x * Scalar(any())); });
  ASSERT_EQ(matches.size(), 3U);
  for (const Subgraph& match : matches) EXPECT_EQ(match.nodes.size(), 2U);
}

TEST(FeatureTable, Row07_ModulesByRegexInAPattern) {
  const Schedule sch = two_linears(false);
  EXPECT_EQ(sch.find([](T x) { return call_module("fc.", x); }).size(), 2U);
  EXPECT_EQ(sch.find([](T x) { return call_module("fc.*", x); }).size(), 3U);
  EXPECT_EQ(sch.find([](T x) { return call_module("act", call_module("fc1", x)); }).to_string(),
            "[[('', fc1), ('', act)]]");
}

TEST(FeatureTable, Row07_ModulesByClassInAPattern) {
  const Schedule sch = two_linears(false);
  EXPECT_EQ(sch.find([](T x) { return call_module<nn::ReLU>(call_module<nn::Linear>(x)); }).size(),
            2U);
  const Matches matches =
      sch.find([](T x) { return call_module<nn::GELU>(call_module<nn::Linear>(x)); });
  EXPECT_TRUE(matches.empty());
  EXPECT_EQ(sch.find<nn::Linear>().to_string(), "[[('', fc1)], [('', fc2)], [('', fc10)]]");
  EXPECT_TRUE(sch.find<nn::GELU>().empty());
}

TEST(FeatureTable, Row07_ADiamondWithOtherOpsInBetween) {
  const auto model = function_model([](T x) {
    const Tensor top = exp(x);
    const Tensor useless = sin(x);
    const Tensor left = relu(top);
    const Tensor also_useless = cos(useless);
    const Tensor right = tanh(top);
    return (left + right) * also_useless;
  });
  const Schedule sch = create_schedule(model, {randn({3})});
  const Matches matches = sch.find([](T x) {
    const Tensor top = exp(x);
    return relu(top) + tanh(top);
  });
  ASSERT_EQ(matches.size(), 1U);
  EXPECT_EQ(matches[0].nodes.size(), 4U);
}

TEST(FeatureTable, Row07_ModulesOfModulesChain) {
  struct Block : nn::Module {
    Block() : up(add<nn::Linear>("up", 4, 4)), down(add<nn::Linear>("down", 4, 4)) {}
    Tensor forward(T x) const { return down(relu(up(x))); }
    nn::Child<nn::Linear> up, down;
  };
  const Schedule sch = create_schedule(nn::make<test::Stack<Block>>(4), {randn({2, 4})});
  const Matches matches = sch.find([](T x) { return call_module<Block>(call_module<Block>(x)); });
  ASSERT_EQ(matches.size(), 2U) << matches.explain();
  EXPECT_EQ(matches[0].nodes.size(), 6U);
  EXPECT_EQ(sch.find([](T x) { return call_module("layer\\.3", x); }).size(), 1U);
}

TEST(FeatureTable, Row07_PatternsCrossModulesOnceTheyAreFlattened) {
  struct Half : nn::Module {
    Tensor forward(T x) const { return relu(exp(x)); }
  };
  struct Whole : nn::Module {
    Whole() : half(add<Half>("half")) {}
    Tensor forward(T x) const { return tanh(half(x)); }
    nn::Child<Half> half;
  };
  Schedule sch = create_schedule(nn::make<Whole>(), {randn({3})});
  const auto pattern = [](T x) { return tanh(relu(exp(x))); };
  EXPECT_TRUE(sch.find(pattern).empty());
  sch.trace({.flatten = true});
  EXPECT_EQ(sch.find(pattern).size(), 1U);
}

// --- constants ----------------------------------------------------------------------------------------

TEST(FeatureTable, Row09_EveryConstantCounts) {
  const auto model = function_model([](T x) {
    const Tensor y = softmax(x.view({2, 3, 4, 5}).permute({0, 1, 3, 2}), 0);
    return dropout(y, 0.9) * 3.0;
  });
  const Schedule sch = create_schedule(model, {randn({6, 20})});
  const auto pattern = [](std::vector<std::int64_t> order, std::int64_t axis, double p, double by) {
    return [=](T x) { return dropout(softmax(x.view({2, 3, 4, 5}).permute(order), axis), p) * by; };
  };
  EXPECT_EQ(sch.find(pattern({0, 1, 3, 2}, 0, 0.9, 3.0)).size(), 1U);
  EXPECT_TRUE(sch.find(pattern({3, 2, 1, 0}, 0, 0.9, 3.0)).empty());
  EXPECT_TRUE(sch.find(pattern({0, 1, 3, 2}, -1, 0.9, 3.0)).empty());
  EXPECT_TRUE(sch.find(pattern({0, 1, 3, 2}, 0, 0.1, 3.0)).empty());
  EXPECT_TRUE(sch.find(pattern({0, 1, 3, 2}, 0, 0.9, 100.0)).empty());
  EXPECT_TRUE(sch.find([](T x) { return x.view({7, 7}); }).empty());
}

TEST(FeatureTable, Row09_AnyCapturesWhatItStoodFor) {
  const auto model = function_model([](T x) { return dropout(x * 3.0, 0.25) * 3.0; });
  const Schedule sch = create_schedule(model, {randn({4})});
  const Matches matches =
      sch.find([](T x) { return dropout(x * Scalar(Any(1)), Any(2)) * Scalar(Any(1)); });
  ASSERT_EQ(matches.size(), 1U) << matches.explain();
  EXPECT_EQ(to_string(matches[0].captures.at(1)), "3");
  EXPECT_EQ(to_string(matches[0].captures.at(2)), "0.25");
  const auto other = function_model([](T x) { return dropout(x * 3.0, 0.25) * 4.0; });
  EXPECT_TRUE(create_schedule(other, {randn({4})})
                  .find([](T x) { return dropout(x * Scalar(Any(1)), Any(2)) * Scalar(Any(1)); })
                  .empty());
}

TEST(FeatureTable, Row09_ASizeMayBeCaptured) {
  const auto model = function_model([](T x) { return x.view({x.size(0), 3, 4}); });
  const Schedule sch = create_schedule(model, {randn({2, 12})});
  const Matches matches = sch.find([](T x) { return x.view({x.size(0), Any(0), -1}); });
  ASSERT_EQ(matches.size(), 1U);
  EXPECT_EQ(to_string(matches[0].captures.at(0)), "3");
}

}  // namespace
}  // namespace tenon
