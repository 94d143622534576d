// Every invariant between a Graph and its rewritten form has a planted violation here that is reported
// by its number, naming the value; and what a rewrite may do passes.
#include "graph/verify_rewrite.h"

#include <gtest/gtest.h>

#include "graph/verify.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/ops/attributes.h"
#include "tests/support/expect_error.h"
#include "tests/support/graph_surgeon.h"

namespace tenon {
namespace verify_rewrite_test {

/// %x -> add(., %w) -> dropout -> mul(., %frozen)            outputs 0 and 2
///                                  `-> detach -> add_1(., %x)   output 1
/// and %counter becomes neg(%counter).
struct Rewritten {
  Rewritten() {
    ModuleCall root;
    root.type = "Root";
    graph.add_call(root);
    const auto size = Dim::symbol("s0", 4, graph.guards());
    x = graph.add_input("x", {DType::float32, Shape{size, 3}, kCpu});
    w = graph.add_state(ValueKind::parameter, "w", ones({3}).requires_grad_());
    frozen = graph.add_state(ValueKind::parameter, "frozen", ones({3}));
    counter = graph.add_state(ValueKind::buffer, "counter", ones({3}));
    sum = add("add", {x, w}, BinaryAttrs{});
    drop = add("dropout", {sum}, DropoutAttrs{0.5, DropoutMode::follow, 0});
    mul = add("mul", {drop, frozen}, BinaryAttrs{});
    detach = add("detach", {mul}, {});
    skip = add("add", {detach, x}, BinaryAttrs{});
    neg = add("neg", {counter}, {});
    graph.set_outputs({mul, skip, mul});
    graph.set_write(counter, neg);
    original = graph;
  }
  ValueId add(const char* op, std::vector<ValueId> inputs, Attrs attrs) {
    const NodeId id = graph.add_node(get_op(op), std::move(inputs), std::move(attrs), 0);
    graph.rename(id, op);
    return graph.node(id).outputs[0];
  }
  NodeId node(ValueId value) const { return graph.value(value).producer; }

  Graph graph;
  Graph original;
  ValueId x, w, frozen, counter, sum, drop, mul, detach, skip, neg;
  std::vector<std::string> fresh;
};

struct Violation {
  const char* name;
  const char* message;
  void (*plant)(Rewritten&);
};

class VerifyRewriteTest : public ::testing::TestWithParam<Violation> {};

TEST_P(VerifyRewriteTest, ReportsThePlantedViolation) {
  Rewritten r;
  ASSERT_NO_THROW(verify(r.graph));
  ASSERT_NO_THROW(verify_rewrite(r.original, r.graph));
  GetParam().plant(r);
  EXPECT_EQ(test::error_text<GraphError>([&] { verify_rewrite(r.original, r.graph, r.fresh); }),
            "invariant " + std::string(GetParam().message));
}

using S = GraphSurgeon;
const Violation kInterface[] = {
    {"V8_OutputGone", "V8 is broken: the graph has 2 outputs; it had 3",
     [](Rewritten& r) {
       r.graph.set_outputs({r.mul, r.skip});
     }},
    {"V8_OutputShape", "V8 is broken: output 1, %detach_1, is float32(3,); it was float32(s0, 3)",
     [](Rewritten& r) {
       r.graph.set_outputs({r.mul, r.add("detach", {r.frozen}, {}), r.mul});
     }},
    {"V8_InputAdded", "V8 is broken: the graph has 2 inputs; it had 1",
     [](Rewritten& r) { r.graph.add_input("z", r.graph.value(r.x).spec); }},
    {"V8_InputRenamed", "V8 is broken: input 0 is %y, float32(s0, 3); it was %x, float32(s0, 3)",
     [](Rewritten& r) { S::value(r.graph, r.x).name = "y"; }},
    {"V13_NewGuard", "V13 is broken: s0 == 4 is a new guard",
     [](Rewritten& r) {
       r.graph.own_guards();
       r.graph.guards()->add({r.graph.value(r.x).spec.shape[0], DimGuard::Relation::equal, 4});
     }},
    {"V15_OutputDtype", "V15 is broken: output 1, %cast, is float64(s0, 3); it was float32(s0, 3)",
     [](Rewritten& r) {
       r.graph.set_outputs({r.mul, r.add("cast", {r.skip}, CastAttrs{DType::float64}), r.mul});
     }},
    {"V15_WriteDtype", "V15 is broken: %counter is written as float64; it was as float32",
     [](Rewritten& r) {
       r.graph.set_write(r.counter, r.add("cast", {r.neg}, CastAttrs{DType::float64}));
     }},
    {"V19_OutputsMerged", "V19 is broken: output 1, %mul, has become output 0",
     [](Rewritten& r) {
       r.graph.set_outputs({r.mul, r.mul, r.mul});
     }},
    {"V19_OutputsParted", "V19 is broken: output 2, %neg_1, is no longer output 0",
     [](Rewritten& r) {
       r.graph.set_outputs({r.mul, r.skip, r.add("neg", {r.mul}, {})});
     }},
    {"V19_InputReturned", "V19 is broken: output 1 is %x; it was %add_1",
     [](Rewritten& r) {
       r.graph.set_outputs({r.mul, r.x, r.mul});
     }},
};

const Violation kState[] = {
    {"V20_WriteDropped", "V20 is broken: %counter is no longer written",
     [](Rewritten& r) { r.graph.drop_write(r.counter); }},
    {"V20_WriteAdded", "V20 is broken: %frozen is written, unlike before",
     [](Rewritten& r) { r.graph.set_write(r.frozen, r.neg); }},
    {"V27_Frozen", "V27 is broken: %w does not require a gradient, unlike before",
     [](Rewritten& r) { S::value(r.graph, r.w).tensor = ones({3}); }},
    {"V27_Thawed", "V27 is broken: %frozen requires a gradient, unlike before",
     [](Rewritten& r) { S::value(r.graph, r.frozen).tensor = ones({3}).requires_grad_(); }},
    {"V28_Renamed", "V28 is broken: %weight was %w",
     [](Rewritten& r) { S::value(r.graph, r.w).name = "weight"; }},
    {"V28_TensorExchanged", "V28 is broken: %w holds another tensor than before",
     [](Rewritten& r) { S::value(r.graph, r.w).tensor = ones({3}).requires_grad_(); }},
    {"V28_NameTaken", "V28 is broken: %counter holds another tensor than before",
     [](Rewritten& r) {
       const ValueId other = r.graph.add_state(ValueKind::buffer, "counter", ones({3}));
       r.graph.replace_all_uses(r.counter, other);
       r.graph.drop_write(r.counter);
       r.graph.set_write(other, r.neg);
       r.graph.eliminate_dead_code();
     }},
    {"V31_ParameterGone", "V31 is broken: %frozen is gone: nothing reads it any more",
     [](Rewritten& r) {
       r.graph.set_operand(r.node(r.mul), 1, r.w);
       r.graph.eliminate_dead_code();
     }},
    {"V31_NewParameter", "V31 is broken: %copy is a new parameter",
     [](Rewritten& r) {
       const ValueId copy = r.graph.add_state(ValueKind::parameter, "copy", ones({3}));
       r.graph.set_operand(r.node(r.mul), 1, copy);
     }},
    {"V32_FreshIsTied", "V32 is broken: %copy shares the storage of %w",
     [](Rewritten& r) {
       r.fresh = {"copy"};
       const ValueId copy = r.graph.add_state(ValueKind::parameter, "copy",
                                              r.graph.value(r.w).tensor.detach().view({3}));
       r.graph.set_operand(r.node(r.mul), 1, copy);
     }},
};

const Violation kMeaning[] = {
    {"V23_SiteMoved", "V23 is broken: the mask of site 0 with probability 0.5 is no longer drawn",
     [](Rewritten& r) { r.graph.set_attribute(r.node(r.drop), 2, std::int64_t{5}); }},
    {"V23_ProbabilityChanged",
     "V23 is broken: the mask of site 0 with probability 0.5 is no longer drawn",
     [](Rewritten& r) { r.graph.set_attribute(r.node(r.drop), 0, 0.25); }},
    {"V23_MaskAdded",
     "V23 is broken: a mask of site 3 with probability 0.5 is drawn, unlike before",
     [](Rewritten& r) {
       const ValueId again = r.add("dropout", {r.sum}, DropoutAttrs{0.5, DropoutMode::follow, 3});
       r.graph.set_operand(r.node(r.mul), 0, again);
       r.graph.set_operand(r.node(again), 0, r.drop);
     }},
    {"V29_PathCut", "V29 is broken: output 0 is no longer differentiable by %x",
     [](Rewritten& r) { r.graph.set_operand(r.node(r.drop), 0, r.add("detach", {r.sum}, {})); }},
    {"V29_PathAdded", "V29 is broken: the results have become differentiable by %hidden",
     [](Rewritten& r) {
       const ValueId hidden =
           r.graph.add_state(ValueKind::parameter, "hidden", ones({3}).requires_grad_());
       const ValueId cut = r.add("mul", {r.x, r.add("detach", {hidden}, {})}, BinaryAttrs{});
       r.graph.set_outputs({r.mul, cut, r.mul});
       r.original = r.graph;
       r.graph.set_operand(r.node(cut), 1, hidden);
     }},
};

const auto kName = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Interface, VerifyRewriteTest, ::testing::ValuesIn(kInterface), kName);
INSTANTIATE_TEST_SUITE_P(State, VerifyRewriteTest, ::testing::ValuesIn(kState), kName);
INSTANTIATE_TEST_SUITE_P(Meaning, VerifyRewriteTest, ::testing::ValuesIn(kMeaning), kName);

TEST(VerifyRewrite, OtherNodesForTheSameValuePass) {
  Rewritten r;
  const ValueId swapped = r.add("mul", {r.frozen, r.drop}, BinaryAttrs{});
  r.graph.replace_all_uses(r.mul, swapped);
  r.graph.eliminate_dead_code();
  EXPECT_NO_THROW(verify_rewrite(r.original, r.graph));
}

TEST(VerifyRewrite, AFreshParameterMayTakeTheOriginalsPlace) {
  Rewritten r;
  const ValueId fresh = r.graph.add_state(ValueKind::parameter, "w_2", ones({3}).requires_grad_());
  r.graph.replace_all_uses(r.w, fresh);
  r.graph.eliminate_dead_code();
  const std::vector<std::string> names{"w_2"};
  EXPECT_NO_THROW(verify_rewrite(r.original, r.graph, names));
  EXPECT_ERROR(GraphError, "invariant V31 is broken: %w_2 is a new parameter",
               verify_rewrite(r.original, r.graph));
}

TEST(VerifyRewrite, MoreThan64OutputsAreFollowed) {
  Rewritten r;
  std::vector<ValueId> outputs;
  for (int i = 0; i < 70; ++i) outputs.push_back(r.add("neg", {r.mul}, {}));
  r.graph.set_outputs(outputs);
  r.graph.eliminate_dead_code();
  const Graph original = r.graph;
  EXPECT_NO_THROW(verify_rewrite(original, r.graph));
  r.graph.set_operand(r.node(outputs[67]), 0, r.add("detach", {r.mul}, {}));
  EXPECT_ERROR(GraphError, "invariant V29 is broken: output 67 is no longer differentiable by %x",
               verify_rewrite(original, r.graph));
}

}  // namespace verify_rewrite_test
}  // namespace tenon
