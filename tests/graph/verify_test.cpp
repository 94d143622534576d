// Every invariant of the verifier has a planted violation here that it reports by its number.
#include "graph/verify.h"

#include <gtest/gtest.h>

#include "graph/tracer.h"
#include "tensor/error.h"
#include "tensor/ops/attributes.h"
#include "tests/support/expect_error.h"

namespace tenon {

struct GraphSurgeon {
  static Node& node(Graph& graph, NodeId id) { return graph.mutable_node(id); }
  static Value& value(Graph& graph, ValueId id) { return graph.mutable_value(id); }
  static std::vector<NodeId>& order(Graph& graph) { return graph.order_; }
  static std::vector<ValueId>& outputs(Graph& graph) { return graph.outputs_; }
  static std::vector<ModuleCall>& calls(Graph& graph) { return graph.calls_; }
};

namespace {

/// %x -> exp -> relu -> dropout -> dropout -> add(., %w)
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
  ValueId out(NodeId id) const { return graph.node(id).outputs[0]; }

  Graph graph;
  ValueId x, w;
  NodeId exp, relu, first, second, sum;
};

struct Violation {
  const char* name;
  int invariant;
  void (*plant)(Planted&);
};

class Verifier : public ::testing::TestWithParam<Violation> {};

TEST_P(Verifier, ReportsThePlantedViolation) {
  Planted planted;
  ASSERT_NO_THROW(verify(planted.graph));
  GetParam().plant(planted);
  const std::string message = test::error_text<GraphError>([&] { verify(planted.graph); });
  const std::string wanted = "invariant V" + std::to_string(GetParam().invariant) + " is broken: ";
  EXPECT_EQ(message.substr(0, wanted.size()), wanted) << message;
}

using S = GraphSurgeon;
INSTANTIATE_TEST_SUITE_P(
    All, Verifier,
    ::testing::Values(
        Violation{"V1_NoOp", 1, [](Planted& p) { S::node(p.graph, p.exp).op = nullptr; }},
        Violation{"V1_Arity", 1, [](Planted& p) { S::node(p.graph, p.exp).inputs.push_back(p.x); }},
        Violation{"V2_UseBeforeDefinition", 2,
                  [](Planted& p) { std::swap(S::order(p.graph)[0], S::order(p.graph)[1]); }},
        Violation{"V3_TwoProducers", 3,
                  [](Planted& p) { S::value(p.graph, p.out(p.relu)).producer = p.exp; }},
        Violation{"V4_MissingUse", 4, [](Planted& p) { S::value(p.graph, p.x).uses.clear(); }},
        Violation{"V4_StrangeUse", 4,
                  [](Planted& p) {
                    S::value(p.graph, p.x).uses.push_back({p.sum, 0});
                  }},
        Violation{"V5_MissingOperand", 5,
                  [](Planted& p) { S::node(p.graph, p.exp).inputs[0] = 99; }},
        Violation{"V5_StateWithoutTensor", 5,
                  [](Planted& p) { S::value(p.graph, p.w).tensor = Tensor::symbolic({}); }},
        Violation{"V6_NodeNames", 6, [](Planted& p) { S::node(p.graph, p.relu).name = "exp"; }},
        Violation{"V6_InputNames", 6, [](Planted& p) { S::value(p.graph, p.w).name = "x"; }},
        Violation{"V7_TwiceInTheOrder", 7, [](Planted& p) { S::order(p.graph).push_back(p.exp); }},
        Violation{"V8_NoOutput", 8, [](Planted& p) { S::outputs(p.graph).clear(); }},
        Violation{"V8_UnknownOutput", 8, [](Planted& p) { S::outputs(p.graph) = {99}; }},
        Violation{"V9_NoSuchCall", 9, [](Planted& p) { S::node(p.graph, p.exp).call = 7; }},
        Violation{"V9_TwoRoots", 9,
                  [](Planted& p) { S::calls(p.graph).push_back(ModuleCall{.id = 1}); }},
        Violation{"V10_UnusedState", 10,
                  [](Planted& p) { p.graph.add_state(ValueKind::buffer, "b", ones({1})); }},
        Violation{"V11_WrongShape", 11,
                  [](Planted& p) { S::value(p.graph, p.out(p.relu)).spec.shape[1] = 4; }},
        Violation{"V11_WrongDtype", 11,
                  [](Planted& p) { S::value(p.graph, p.out(p.sum)).spec.dtype = DType::float64; }},
        Violation{"V12_NegativeSize", 12,
                  [](Planted& p) { S::value(p.graph, p.out(p.relu)).spec.shape[1] = -3; }},
        Violation{"V13_SharedMask", 13,
                  [](Planted& p) { p.graph.set_attribute(p.second, 2, std::int64_t{0}); }}),
    [](const auto& info) { return info.param.name; });

TEST(Graph, ErasesOnlyWhatIsUnused) {
  Planted p;
  EXPECT_ERROR(GraphError, "node relu cannot be erased: its result is used",
               p.graph.erase_node(p.relu));
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

}  // namespace
}  // namespace tenon
