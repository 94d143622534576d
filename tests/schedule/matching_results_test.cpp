// Matches with several results, single nodes and whole modules; and what no match may hide: users
// outside, state writes, effects, hooks, nodes in between.
#include <gtest/gtest.h>

#include "schedule/schedule.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using T = const Tensor&;

struct TwoResults : nn::Module {
  std::vector<Tensor> forward(T x) const { return {relu(x), exp(x)}; }
};

struct UsesTwoResults : nn::Module {
  UsesTwoResults() : two(add<TwoResults>("two")) {}
  Tensor forward(T x) const {
    const std::vector<Tensor> both = two(x);
    return both[0] * both[1];
  }
  nn::Child<TwoResults> two;
};

Schedule pairs() {
  return create_schedule(function_model([](T x, T y) {
                           const Tensor a = relu(x);
                           const Tensor b = relu(y);
                           const Tensor c = exp(y);
                           const Tensor d = exp(x);
                           return matmul(matmul(a, b), matmul(c, d));
                         }),
                         {randn({3, 3}), randn({3, 3})});
}

TEST(SeveralResults, InEveryFormOfReturning) {
  const Schedule sch = pairs();
  const std::string expected = "[[('', relu), ('', exp_1)], [('', relu_1), ('', exp)]]";
  EXPECT_EQ(sch.find([](T x) {
                 return std::vector<Tensor>{relu(x), exp(x)};
               })
                .to_string(),
            expected);
  EXPECT_EQ(sch.find([](T x) {
                 return std::array<Tensor, 2>{relu(x), exp(x)};
               })
                .to_string(),
            expected);
  EXPECT_EQ(sch.find([](T x) { return std::pair(relu(x), exp(x)); }).to_string(), expected);
  EXPECT_EQ(sch.find([](T x) { return std::tuple(relu(x), exp(x)); }).to_string(), expected);
}

TEST(SeveralResults, StandInTheOrderOfThePattern) {
  const Schedule sch = pairs();
  const Matches matches = sch.find([](T x) { return std::pair(exp(x), relu(x)); });
  ASSERT_EQ(matches.size(), 2U);
  for (const Subgraph& match : matches) {
    ASSERT_EQ(match.outputs.size(), 2U);
    EXPECT_EQ(sch.graph().node(sch.graph().value(match.outputs[0]).producer).op->name, "exp");
    EXPECT_EQ(sch.graph().node(sch.graph().value(match.outputs[1]).producer).op->name, "relu");
    EXPECT_EQ(match_fault(sch.graph(), match), "");
  }
}

TEST(SeveralResults, OneMayBeAnIntermediateOfAnother) {
  const auto model = function_model([](T x) {
    const Tensor y = exp(x);
    return relu(y) * y;
  });
  const Schedule sch = create_schedule(model, {randn({3})});
  EXPECT_TRUE(sch.find([](T x) { return relu(exp(x)); }).empty());
  const Matches matches = sch.find([](T x) {
    const Tensor y = exp(x);
    return std::pair(relu(y), y);
  });
  ASSERT_EQ(matches.size(), 1U) << matches.explain();
  EXPECT_EQ(matches[0].nodes.size(), 2U);
}

TEST(SeveralResults, FurtherOnesAreFoundBehindSharedValues) {
  const auto model = function_model([](T x, T y) {
    const Tensor shared = x * y;
    const Tensor a = tanh(exp(shared));
    const Tensor decoy = exp(shared);
    const Tensor b = sin(shared + y);
    return a + decoy + b;
  });
  const Schedule sch = create_schedule(model, {randn({3}), randn({3})});
  const Matches matches = sch.find([](T s, T y) { return std::pair(tanh(exp(s)), sin(y + s)); });
  ASSERT_EQ(matches.size(), 1U) << matches.explain();
  EXPECT_EQ(matches[0].nodes.size(), 4U);
}

TEST(SeveralResults, MustBeConnected) {
  EXPECT_ERROR(
      ScheduleError,
      "the results of the pattern share no value: nothing connects exp with relu; find them "
      "by patterns of their own",
      pairs().find([](T x, T y) { return std::pair(relu(x), exp(y)); }));
}

TEST(SeveralResults, NothingMayStandBetween) {
  const auto model = function_model([](T x) {
    const Tensor a = relu(x);
    return x * log(a) + a;
  });
  const Schedule sch = create_schedule(model, {randn({3})});
  const Matches matches = sch.find([](T x, T y) { return std::pair(relu(x), x * y); });
  EXPECT_TRUE(matches.empty());
  EXPECT_EQ(matches.explain(),
            "near miss at relu: log stands between: it reads %relu and the match depends on it");
}

TEST(SeveralResults, OfOneOp) {
  const Schedule sch = create_schedule(
      nn::make<nn::Sequential>(nn::make<nn::BatchNorm2d>(3, 1e-5, 0.1, true, false)),
      {randn({2, 3, 4, 4})});
  const NodeId norm = sch.graph().order()[0];
  const Attrs attrs = sch.graph().node(norm).attrs;
  const auto results = [&](T x, T weight, T bias) {
    const Tensor operands[] = {x, Tensor(), Tensor(), weight, bias};
    return apply(get_op("batch_norm"), operands, attrs);
  };
  const Matches matches =
      sch.find([&](T x, T w, T b) { return std::pair(results(x, w, b)[0], results(x, w, b)[0]); });
  EXPECT_TRUE(matches.empty());
  const Matches both = sch.find([&](T x, T w, T b) {
    const auto all = results(x, w, b);
    return std::pair(all[1], all[0]);
  });
  ASSERT_EQ(both.size(), 1U) << both.explain();
  EXPECT_EQ(both[0].outputs[0], sch.graph().node(norm).outputs[1]);
  EXPECT_EQ(both[0].outputs[1], sch.graph().node(norm).outputs[0]);
}

TEST(Modules, WithSeveralResultsAreMatches) {
  const Schedule sch = create_schedule(nn::make<UsesTwoResults>(), {randn({3})});
  for (const Matches& matches : {sch.find("two"), sch.find<TwoResults>()}) {
    ASSERT_EQ(matches.size(), 1U);
    EXPECT_EQ(matches[0].outputs.size(), 2U);
    EXPECT_EQ(matches[0].nodes.size(), 2U);
    EXPECT_EQ(match_fault(sch.graph(), matches[0]), "");
  }
}

TEST(Modules, TheOutermostOfNestedOnesIsTheMatch) {
  const Schedule sch =
      create_schedule(nn::make<test::Stack<test::ResidualMlp>>(3, 4), {randn({2, 4})});
  EXPECT_EQ(sch.find(".*").size(), 3U);
  EXPECT_EQ(sch.find("layer\\..*").size(), 3U);
  EXPECT_EQ(sch.find(".*\\.(up|down)").size(), 6U);
}

TEST(Predicates, FindNodesInProgramOrder) {
  const Schedule sch =
      create_schedule(nn::make<test::Stack<test::ResidualMlp>>(2, 4), {randn({2, 4})});
  const auto is_linear = [](const Node& node) { return node.op->name == "linear"; };
  EXPECT_EQ(sch.find(is_linear).to_string(),
            "[[('layer.0', up)], [('layer.0', down)], [('layer.1', up)], [('layer.1', down)]]");
  const Matches below = sch["layer.1"].find(is_linear);
  ASSERT_EQ(below.size(), 2U);
  const Node& node = sch.graph().node(below[0].nodes.at(0));
  EXPECT_EQ(below[0].inputs, node.inputs);
  EXPECT_EQ(below[0].outputs, node.outputs);
}

TEST(Predicates, InputsAreTheOperandsThatAreThere) {
  const auto model = function_model([w = randn({4, 4})](T x) { return linear(x, w); });
  const Schedule sch = create_schedule(model, {randn({2, 4})});
  const Matches matches = sch.find([](const Node& node) { return node.op->name == "linear"; });
  ASSERT_EQ(matches.size(), 1U);
  EXPECT_EQ(matches[0].inputs.size(), 2U);
}

// --- checks of matches, found or made by hand ---------------------------------------------------------

Subgraph by_hand(const Graph& graph, const std::vector<std::string>& names,
                 const std::vector<std::string>& results) {
  Subgraph match;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (std::find(names.begin(), names.end(), graph.full_name(id)) == names.end()) continue;
    match.nodes.push_back(id);
    if (std::find(results.begin(), results.end(), graph.full_name(id)) != results.end()) {
      match.outputs.push_back(node.outputs[0]);
    }
  }
  return match;
}

Schedule diamond() {
  return create_schedule(function_model([](T x) {
                           const Tensor top = exp(x);
                           return relu(top) * log(tanh(top));
                         }),
                         {randn({3})});
}

TEST(CheckMatch, AcceptsWhatCanBecomeOne) {
  const Schedule sch = diamond();
  check_match(sch.graph(), by_hand(sch.graph(), {"exp", "relu", "tanh"}, {"relu", "tanh"}));
  check_match(sch.graph(), by_hand(sch.graph(), {"exp", "relu", "tanh", "log", "mul"}, {"mul"}));
}

TEST(CheckMatch, V40_NamesTheUserOutside) {
  const Schedule sch = diamond();
  EXPECT_ERROR(ScheduleError, "%exp is an intermediate of the match and is also used by tanh",
               check_match(sch.graph(), by_hand(sch.graph(), {"exp", "relu"}, {"relu"})));
}

TEST(CheckMatch, V40_NamesTheOutputThatItWouldHide) {
  const Schedule sch = diamond();
  EXPECT_ERROR(ScheduleError,
               "%mul is an intermediate of the match and is also used by the graph's output",
               check_match(sch.graph(), by_hand(sch.graph(), {"log", "mul"}, {"log"})));
}

TEST(CheckMatch, V18_NamesTheStateWriteThatItWouldHide) {
  const Schedule sch =
      create_schedule(nn::make<nn::Sequential>(nn::make<nn::BatchNorm2d>(3), nn::make<nn::ReLU>()),
                      {randn({2, 3, 4, 4})});
  const Matches norm = sch.find<nn::BatchNorm2d>();
  ASSERT_EQ(norm.size(), 1U);
  EXPECT_ERROR(ScheduleError,
               "%0:3 is an intermediate of the match and is also used by the write of "
               "%0.running_mean",
               check_match(sch.graph(), norm[0]));
}

TEST(CheckMatch, V40_NamesWhatStandsBetween) {
  const Schedule sch = diamond();
  EXPECT_ERROR(ScheduleError, "log stands between: it reads %tanh and the match depends on it",
               check_match(sch.graph(), by_hand(sch.graph(), {"tanh", "mul"}, {"tanh", "mul"})));
}

TEST(CheckMatch, RefusesResultsFromOutsideAndInputsFromInside) {
  const Schedule sch = diamond();
  Subgraph match = by_hand(sch.graph(), {"exp", "relu", "tanh"}, {"relu", "tanh"});
  match.inputs = {sch.graph().node(match.nodes[0]).outputs[0]};
  EXPECT_EQ(match_fault(sch.graph(), match),
            "%exp is an input of the match and computed inside of it");
  match.inputs = {};
  match.outputs.push_back(sch.graph().outputs()[0]);
  EXPECT_EQ(match_fault(sch.graph(), match),
            "%mul is a result of the match and not computed inside of it");
  EXPECT_EQ(match_fault(sch.graph(), Subgraph{}), "the match has no nodes");
}

TEST(CheckMatch, V30_RefusesAHookUnlessItsModuleIsInsideAsAWhole) {
  struct Block : nn::Module {
    Tensor forward(T x) const { return relu(exp(x)); }
  };
  struct Model : nn::Module {
    Model() : block(add<Block>("block")) {}
    Tensor forward(T x) const { return tanh(block(x)); }
    nn::Child<Block> block;
  };
  const auto model = nn::make<Model>();
  model->block->register_forward_hook(
      [](nn::Module&, std::span<const Tensor>, std::span<Tensor>) {});
  Schedule sch = create_schedule(model, {randn({3})});
  sch.trace({.flatten = true});
  const Graph& graph = sch.graph();
  EXPECT_ERROR(ScheduleError, "relu belongs to module 'block', which has a hook",
               check_match(graph, by_hand(graph, {"relu", "tanh"}, {"tanh"})));
  check_match(graph, by_hand(graph, {"exp", "relu", "tanh"}, {"tanh"}));
  const Matches matches = sch.find([](T x) { return tanh(relu(x)); });
  EXPECT_TRUE(matches.empty());
  EXPECT_EQ(matches.explain(), "near miss at tanh: relu belongs to a module with a hook");
}

TEST(CheckMatch, V18_RefusesToSwallowAnEffect) {
  struct Block : nn::Module {
    Tensor forward(T x) const { return relu(tenon::print(exp(x), "here")); }
  };
  struct Model : nn::Module {
    Model() : block(add<Block>("block")) {}
    Tensor forward(T x) const { return tanh(block(x)); }
    nn::Child<Block> block;
  };
  const Schedule sch = create_schedule(nn::make<Model>(), {randn({3})});
  EXPECT_EQ(
      sch.find([](T x) { return relu(exp(x)); }).explain(),
      "near miss at block.relu: %block.exp is an intermediate of the match and is also used by "
      "block.print");
  EXPECT_ERROR(ScheduleError, "block.print (print) has an effect and would be swallowed",
               check_match(sch.graph(), sch.find("block")[0]));
  const Matches in_module = sch.find([](T x) { return tanh(call_module("block", x)); });
  EXPECT_TRUE(in_module.empty());
  EXPECT_EQ(in_module.explain(),
            "near miss at tanh: module 'block': block.print (print) has an effect and would be "
            "swallowed");
  EXPECT_ERROR(ScheduleError, "the pattern calls print without using its result",
               sch.find([](T x) { return relu(tenon::print(x, "here")); }));
}

}  // namespace
}  // namespace tenon
