// Every invariant of one Graph has a planted violation here that the verifier reports by its number,
// naming the node or value.
#include "graph/verify.h"

#include <gtest/gtest.h>

#include "graph/tracer.h"
#include "tensor/error.h"
#include "tensor/ops/attributes.h"
#include "tests/support/expect_error.h"
#include "tests/support/graph_surgeon.h"

namespace tenon {
namespace {

/// %x -> exp -> relu -> dropout -> dropout_1 -> add(., %w)
struct Planted {
  Planted() {
    ModuleCall root;
    root.type = "Root";
    graph.add_call(root);
    const auto size = Dim::symbol("s0", 4, graph.guards());
    x = graph.add_input("x", {DType::float32, Shape{size, 3}, kCpu});
    w = graph.add_state(ValueKind::parameter, "w", ones({3}));
    exp = add("exp", {x}, {});
    relu = add("relu", {out(exp)}, {});
    first = add("dropout", {out(relu)}, DropoutAttrs{0.5, DropoutMode::follow, 0});
    second = add("dropout", {out(first)}, DropoutAttrs{0.5, DropoutMode::follow, 1});
    sum = add("add", {out(second), w}, BinaryAttrs{});
    graph.set_outputs({out(sum)});
  }
  NodeId add(const char* op, std::vector<ValueId> inputs, Attrs attrs) {
    const NodeId id = graph.add_node(get_op(op), std::move(inputs), std::move(attrs), 0);
    graph.rename(id, op);
    return id;
  }
  /// A node of backward.
  NodeId add_gradient(const char* op, std::vector<ValueId> inputs, Attrs attrs) {
    const NodeId id = add(op, std::move(inputs), std::move(attrs));
    graph.mark_gradient(id);
    return id;
  }
  /// relu is of a region, and this node a second run in it.
  NodeId add_recomputed(const char* op) {
    graph.set_region(relu, 0);
    const NodeId id = add(op, {out(exp)}, {});
    graph.set_region(id, 0);
    graph.mark_recomputed(id);
    return id;
  }
  ValueId out(NodeId id) const { return graph.node(id).outputs[0]; }

  Graph graph;
  ValueId x, w;
  NodeId exp, relu, first, second, sum;
};

/// exp with something changed, which no registry knows.
template <class F>
const Op& strange_exp(F change) {
  static const Op op = [&] {
    Op copy = get_op("exp");
    change(copy);
    return copy;
  }();
  return op;
}

struct Violation {
  const char* name;
  const char* message;
  void (*plant)(Planted&);
};

class VerifierTest : public ::testing::TestWithParam<Violation> {};

TEST_P(VerifierTest, ReportsThePlantedViolation) {
  Planted planted;
  ASSERT_NO_THROW(verify(planted.graph));
  const Graph known = planted.graph;
  GetParam().plant(planted);
  const std::string wanted = "invariant " + std::string(GetParam().message);
  EXPECT_EQ(test::error_text<GraphError>([&] { verify(planted.graph); }), wanted);
  EXPECT_EQ(test::error_text<GraphError>([&] { verify(planted.graph, known); }), wanted);
}

using S = GraphSurgeon;
const Violation kStructure[] = {
    {"V1_NoOp", "V1 is broken: exp has no op",
     [](Planted& p) { S::node(p.graph, p.exp).op = nullptr; }},
    {"V1_UnknownOp", "V1 is broken: exp calls 'exp', which is no op",
     [](Planted& p) { S::node(p.graph, p.exp).op = &strange_exp([](Op&) {}); }},
    {"V1_Arity", "V1 is broken: exp has 2 operands",
     [](Planted& p) { S::node(p.graph, p.exp).inputs.push_back(p.x); }},
    {"V2_UseBeforeDefinition", "V2 is broken: operand 0 of relu is defined later",
     [](Planted& p) {
       std::swap(S::order(p.graph)[0], S::order(p.graph)[1]);
       S::accept_order(p.graph);
     }},
    {"V3_TwoProducers", "V3 is broken: output 0 of relu is not its own",
     [](Planted& p) { S::value(p.graph, p.out(p.relu)).producer = p.exp; }},
    {"V4_MissingUse", "V4 is broken: 1 operands are not listed as uses",
     [](Planted& p) { S::value(p.graph, p.x).uses.clear(); }},
    {"V4_StrangeUse", "V4 is broken: %x lists a use that is not there",
     [](Planted& p) {
       S::value(p.graph, p.x).uses.push_back({p.sum, 0});
     }},
    {"V4_UseListedTwice", "V4 is broken: %x lists its use by exp twice",
     [](Planted& p) {
       S::value(p.graph, p.x).uses.push_back({p.exp, 0});
     }},
    {"V5_MissingOperand", "V5 is broken: operand 0 of exp does not exist",
     [](Planted& p) { S::node(p.graph, p.exp).inputs[0] = 99; }},
    {"V5_MissingResult", "V5 is broken: output 0 of exp does not exist",
     [](Planted& p) { S::node(p.graph, p.exp).outputs[0] = 99; }},
    {"V5_MissingInput", "V5 is broken: input 99 of the graph does not exist",
     [](Planted& p) { S::inputs(p.graph).push_back(99); }},
    {"V5_StateWithoutTensor", "V5 is broken: state %w holds no tensor",
     [](Planted& p) { S::value(p.graph, p.w).tensor = Tensor::symbolic({}); }},
    {"V5_CallOfMissingValue",
     "V5 is broken: call '' takes or returns value 99, which does not exist",
     [](Planted& p) { p.graph.mutable_call(0).inputs = {99}; }},
    {"V6_NodeNames", "V6 is broken: two nodes are called exp",
     [](Planted& p) { S::node(p.graph, p.relu).name = "exp"; }},
    {"V6_InputNames", "V6 is broken: two inputs or states are called %x",
     [](Planted& p) { S::value(p.graph, p.w).name = "x"; }},
    {"V7_TwiceInTheOrder", "V7 is broken: the order lists exp where it is not",
     [](Planted& p) { S::order(p.graph).push_back(p.exp); }},
    {"V7_Position", "V7 is broken: the order lists relu where it is not",
     [](Planted& p) { std::swap(S::order(p.graph)[0], S::order(p.graph)[1]); }},
    {"V8_NoOutput", "V8 is broken: the graph has no output",
     [](Planted& p) { S::outputs(p.graph).clear(); }},
    {"V8_UnknownOutput", "V8 is broken: output 99 of the graph does not exist",
     [](Planted& p) { S::outputs(p.graph) = {99}; }},
    {"V9_NoSuchCall", "V9 is broken: node exp belongs to no call",
     [](Planted& p) { S::node(p.graph, p.exp).call = 7; }},
    {"V9_TwoRoots", "V9 is broken: call 'second' is not under the root",
     [](Planted& p) { S::calls(p.graph).push_back(ModuleCall{.id = 1, .path = "second"}); }},
    {"V9_CallIds", "V9 is broken: call 'second' has another call's id",
     [](Planted& p) {
       S::calls(p.graph).push_back(ModuleCall{.id = 0, .parent = 0, .path = "second"});
     }},
    {"V10_UnusedState", "V10 is broken: state %b has no use",
     [](Planted& p) { p.graph.add_state(ValueKind::buffer, "b", ones({1})); }},
};

const Violation kTypes[] = {
    {"V11_WrongShape", "V11 is broken: relu is float32(s0, 4), inferred float32(s0, 3)",
     [](Planted& p) { S::value(p.graph, p.out(p.relu)).spec.shape[1] = 4; }},
    {"V11_WrongDtype", "V11 is broken: add is float64(s0, 3), inferred float32(s0, 3)",
     [](Planted& p) { S::value(p.graph, p.out(p.sum)).spec.dtype = DType::float64; }},
    {"V12_Rank", "V12 is broken: value 3 has rank 9",
     [](Planted& p) {
       S::value(p.graph, p.out(p.relu)).spec.shape = Shape{1, 1, 1, 1, 1, 1, 1, 1, 1};
     }},
    {"V12_Bytes", "V12 is broken: value 3 has too many bytes, float32(s0, 4611686018427387904)",
     [](Planted& p) { S::value(p.graph, p.out(p.relu)).spec.shape[1] = std::int64_t{1} << 62; }},
    {"V13_ForeignSymbol", "V13 is broken: value 3 has a size that no input has, float32(s9, 3)",
     [](Planted& p) {
       S::value(p.graph, p.out(p.relu)).spec.shape[0] = Dim::symbol("s9", 4, p.graph.guards());
     }},
    {"V14_NegativeSize", "V14 is broken: value 3 has a negative size, float32(s0, -3)",
     [](Planted& p) { S::value(p.graph, p.out(p.relu)).spec.shape[1] = -3; }},
};

const Violation kEffects[] = {
    {"V16_EffectInBackward", "V16 is broken: exp has an effect and would run in backward",
     [](Planted& p) {
       S::node(p.graph, p.exp).op =
           &strange_exp([](Op& op) { op.traits |= static_cast<std::uint32_t>(Trait::effect); });
       p.graph.mark_gradient(p.exp);
     }},
    {"V16_SiteOfNoMask", "V16 is broken: exp has a site, but draws nothing",
     [](Planted& p) { S::node(p.graph, p.exp).attrs = DropoutAttrs{}; }},
    {"V17_WriteOfAnInput", "V17 is broken: %x is written, but is no state",
     [](Planted& p) { p.graph.set_write(p.x, p.out(p.exp)); }},
    {"V17_WrittenTwice", "V17 is broken: %w is written twice",
     [](Planted& p) {
       S::writes(p.graph) = {{p.w, p.w}, {p.w, p.w}};
     }},
    {"V17_WrongShape", "V17 is broken: %w is float32(3,), written with float32(s0, 3)",
     [](Planted& p) { p.graph.set_write(p.w, p.out(p.exp)); }},
    {"V17_UnknownValue", "V17 is broken: a write of value 99 into 1 names what does not exist",
     [](Planted& p) { p.graph.set_write(p.w, 99); }},
    {"V21_NoSite", "V21 is broken: dropout draws a mask without a site",
     [](Planted& p) { p.graph.set_attribute(p.first, 2, std::int64_t{-1}); }},
    {"V21_Probability", "V21 is broken: dropout_1 drops with probability 1.5",
     [](Planted& p) { p.graph.set_attribute(p.second, 0, 1.5); }},
    {"V22_SharedMask", "V22 is broken: dropout_1 draws the mask of dropout",
     [](Planted& p) { p.graph.set_attribute(p.second, 2, std::int64_t{0}); }},
    {"V22_ReplayOfAnotherMask",
     "V22 is broken: dropout_2 replays the mask of dropout_1 with another probability",
     [](Planted& p) {
       p.add_gradient("dropout", {p.out(p.sum)}, DropoutAttrs{0.25, DropoutMode::follow, 1});
     }},
    {"V24_RecomputesSomethingElse", "V24 is broken: dropout_2 runs no node of region 0 again",
     [](Planted& p) {
       p.graph.set_region(p.first, 0);
       const NodeId again =
           p.add("dropout", {p.out(p.relu)}, DropoutAttrs{0.5, DropoutMode::train, 0});
       p.graph.set_region(again, 0);
       p.graph.mark_recomputed(again);
     }},
    {"V24_NoRegion", "V24 is broken: relu_1 runs again, but is in no region",
     [](Planted& p) { p.graph.set_region(p.add_recomputed("relu"), kNone); }},
    {"V25_SavedIsMissing", "V25 is broken: operand 0 of relu_1 does not exist",
     [](Planted& p) {
       const NodeId gradient = p.add_gradient("relu", {p.out(p.exp)}, {});
       S::node(p.graph, gradient).inputs[0] = 99;
     }},
    {"V25_SavedLater", "V25 is broken: operand 0 of relu_1 is defined later",
     [](Planted& p) {
       p.add_gradient("relu", {p.out(p.exp)}, {});
       std::swap(S::order(p.graph).front(), S::order(p.graph).back());
       S::accept_order(p.graph);
     }},
    {"V26_SavesMissingOperand",
     "V26 is broken: exp saves for its gradient what 'exp' does not have",
     [](Planted& p) {
       S::node(p.graph, p.exp).op = &strange_exp([](Op& op) { op.saved_inputs = 1U << 5; });
     }},
    {"V26_NoGradient", "V26 is broken: exp has no gradient, and 'exp' does not say so",
     [](Planted& p) {
       S::node(p.graph, p.exp).op = &strange_exp([](Op& op) { op.vjp = nullptr; });
     }},
    {"V32_OneTensorTwice", "V32 is broken: %w and %tied are one tensor",
     [](Planted& p) {
       const ValueId tied =
           p.graph.add_state(ValueKind::parameter, "tied", p.graph.value(p.w).tensor);
       p.add("add", {p.out(p.sum), tied}, BinaryAttrs{});
     }},
};

const auto kName = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Structure, VerifierTest, ::testing::ValuesIn(kStructure), kName);
INSTANTIATE_TEST_SUITE_P(Types, VerifierTest, ::testing::ValuesIn(kTypes), kName);
INSTANTIATE_TEST_SUITE_P(Effects, VerifierTest, ::testing::ValuesIn(kEffects), kName);

TEST(Verify, AcceptsASecondRunAndTheGradientOfAMask) {
  Planted p;
  p.add_recomputed("relu");
  p.add_gradient("dropout", {p.out(p.sum)}, DropoutAttrs{0.5, DropoutMode::follow, 1});
  EXPECT_NO_THROW(verify(p.graph));
}

TEST(Verify, InfersOnlyWhatChanged) {
  Planted p;
  // Wrong in both, so what is shared was not inferred again.
  S::value(p.graph, p.out(p.relu)).spec.shape[1] = 4;
  S::value(p.graph, p.out(p.first)).spec.shape[1] = 4;
  Graph copy = p.graph;
  EXPECT_NO_THROW(verify(copy, p.graph));
  copy.set_attribute(p.second, 0, 0.25);
  EXPECT_EQ(test::error_text<GraphError>([&] { verify(copy, p.graph); }),
            "invariant V11 is broken: dropout_1 is float32(s0, 3), inferred float32(s0, 4)");
}

TEST(Graph, ErasesOnlyWhatIsUnused) {
  Planted p;
  EXPECT_ERROR(GraphError, "node relu cannot be erased: its result is used",
               p.graph.erase_node(p.relu));
}

TEST(Graph, AReplacedNodeKeepsItsPlaceAndMarks) {
  Planted p;
  const NodeId again = p.add_recomputed("relu");
  const NodeId gradient = p.add_gradient("exp", {p.out(again)}, {});
  p.graph.set_outputs({p.out(p.sum), p.out(gradient)});
  for (const NodeId old : {p.relu, again, gradient}) {
    const Node before = p.graph.node(old);
    const std::size_t place = p.graph.position(old);
    const NodeId made = p.graph.replace_node(old, get_op("tanh"), before.inputs, {});
    const Node& after = p.graph.node(made);
    EXPECT_FALSE(p.graph.has_node(old));
    EXPECT_EQ(p.graph.position(made), place);
    EXPECT_EQ(after.name, before.name);
    EXPECT_EQ(after.call, before.call);
    EXPECT_EQ(after.region, before.region);
    EXPECT_EQ(after.gradient, before.gradient);
    EXPECT_EQ(after.recomputed, before.recomputed);
  }
  const NodeId last = p.graph.order().back();
  EXPECT_EQ(p.graph.outputs()[1], p.out(last));
  EXPECT_NO_THROW(verify(p.graph));
}

TEST(Graph, ANodeIsReplacedWholeOrNotAtAll) {
  Planted p;
  const ValueId y = p.out(p.exp);
  const NodeId two = p.add("silu_mul_backward", {y, y, y}, {});
  p.graph.set_outputs({p.out(p.sum), p.graph.node(two).outputs[1]});
  const std::string before = to_text(p.graph);
  EXPECT_ERROR(GraphError, "silu_mul_backward cannot be replaced by relu: its result 1 is used",
               p.graph.replace_node(two, get_op("relu"), {y}, {}));
  EXPECT_THROW(p.graph.replace_node(two, get_op("matmul"), {y, y}, {}), ShapeError);
  EXPECT_EQ(to_text(p.graph), before);
  p.graph.set_outputs({p.out(p.sum), p.out(two)});
  p.graph.replace_node(two, get_op("relu"), {y}, {});
  EXPECT_NO_THROW(verify(p.graph));
}

TEST(Graph, CopiesAreIndependent) {
  Planted p;
  const std::string before = to_text(p.graph);
  Graph copy = p.graph;
  copy.replace_all_uses(p.out(p.relu), p.out(p.exp));
  copy.eliminate_dead_code();
  EXPECT_EQ(copy.order().size(), 4U);
  EXPECT_NO_THROW(verify(copy));
  EXPECT_EQ(to_text(p.graph), before);
}

TEST(Graph, CopiesShareWhatNeitherChanged) {
  Planted p;
  Graph copy = p.graph;
  EXPECT_TRUE(copy.shares_node(p.graph, p.exp));
  copy.rename(p.exp, "renamed");
  EXPECT_FALSE(copy.shares_node(p.graph, p.exp));
  EXPECT_TRUE(copy.shares_node(p.graph, p.relu));
  EXPECT_TRUE(copy.shares_value(p.graph, p.w));
  EXPECT_EQ(p.graph.node(p.exp).name, "exp");
}

TEST(Graph, PositionsFollowEdits) {
  Planted p;
  const NodeId inserted = p.graph.add_node(get_op("neg"), {p.x}, {}, 0, 1);
  EXPECT_EQ(p.graph.position(inserted), 1U);
  EXPECT_EQ(p.graph.position(p.sum), 5U);
  EXPECT_EQ(p.graph.nodes_within(0), p.graph.order());
  p.graph.erase_node(inserted);
  EXPECT_EQ(p.graph.position(p.sum), 4U);
  EXPECT_EQ(p.graph.nodes_within(0), p.graph.order());
}

TEST(Graph, NamesTakeTheSmallestFreeNumber) {
  Planted p;
  const NodeId a = p.add("exp", {p.x}, {});
  const NodeId b = p.add("exp", {p.x}, {});
  EXPECT_EQ(p.graph.node(b).name, "exp_2");
  p.graph.erase_node(a);
  EXPECT_EQ(p.graph.node(p.add("exp", {p.x}, {})).name, "exp_1");
  p.graph.rename_apart({b, p.exp});
  EXPECT_EQ(p.graph.node(b).name, "exp_2");
  EXPECT_EQ(p.graph.node(p.exp).name, "exp");
}

}  // namespace
}  // namespace tenon
