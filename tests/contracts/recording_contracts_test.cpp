// DESIGN section 3, contracts 1 to 6: ops, the one entry point, gradients as ops, the flat Graph,
// decompositions, sizes. What later work builds on; each test is named after its contract.
#include <gtest/gtest.h>

#include <algorithm>

#include "autograd/autograd.h"
#include "examples/attention_model.h"
#include "graph/verify.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "schedule/verification.h"
#include "tensor/ops/attributes.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 2;

std::vector<std::string> ops_of(const Graph& graph) {
  std::vector<std::string> names;
  for (NodeId id : graph.order()) names.push_back(graph.node(id).op->name);
  return names;
}

TEST(Contract3_1, AnOpStatesEverythingOnce) {
  for (const Op* op : all_ops()) {
    EXPECT_EQ(find_op(op->name), op);
    EXPECT_FALSE(op->doc.empty()) << op->name;
    EXPECT_TRUE(op->infer || op->decompose) << op->name;
    EXPECT_TRUE(op->vjp || op->decompose || op->not_differentiable) << op->name;
    EXPECT_FALSE(op->vjp && op->not_differentiable) << op->name;
  }
}

TEST(Contract3_1, PrintingEqualityAndRewritingOfAttributesFollowFromTheFieldList) {
  const Attrs a = NarrowAttrs{1, 2, 3};
  EXPECT_EQ(a.to_string(), "dim=1, start=2, length=3");
  const Attrs b = a.with(a.find("length"), Dim(4));
  EXPECT_EQ(b.as<NarrowAttrs>().length.value(), 4);
  EXPECT_FALSE(equal(a.value(2), b.value(2)));
  EXPECT_TRUE(equal(a.value(1), b.value(1)));
}

/// Counts the calls that reach it and runs them.
class Counting final : public Interpreter {
 public:
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    ++calls;
    const NoGradGuard no_grad;
    return apply_eager(op, inputs, attrs);
  }
  int calls = 0;
};

TEST(Contract3_2, EveryFunctionalCallGoesThroughTheInnermostInterpreter) {
  Counting counting;
  const Tensor x = randn({2, 4, kHidden});
  const auto model = nn::make<tutorial::Attention>(kHidden, kHeads);
  const Schedule sch = create_schedule(model, {{"hidden_states", x}});
  {
    const InterpreterGuard guard(counting);
    model(x);
  }
  EXPECT_EQ(counting.calls, static_cast<int>(sch.graph().order().size()));
}

TEST(Contract3_3, AVjpEmitsOpsSoTheJointGraphIsATraceOfBackward) {
  const auto model = function_model([](const Tensor& x) { return gelu(x * 2.0); });
  const Schedule sch = create_schedule(model, {{"x", randn({3, 5})}});
  const GradientGraph joint = differentiate(sch.graph(), {});
  verify(joint.graph);
  EXPECT_EQ(joint.outputs, (std::vector<std::string>{"output 0", "gradient of input x"}));
  int gradient_nodes = 0;
  for (NodeId id : joint.graph.order()) gradient_nodes += joint.graph.node(id).gradient;
  EXPECT_GT(gradient_nodes, 0);
  // The forward half is the forward Graph, node for node.
  const auto forward = ops_of(sch.graph());
  const auto both = ops_of(joint.graph);
  EXPECT_TRUE(std::equal(forward.begin(), forward.end(), both.begin()));
  // And it computes what eager backward computes, for any size.
  Executor run(joint.graph);
  for (const std::int64_t rows : {3, 1, 70}) {
    Tensor x = randn({rows, 5});
    const Tensor cotangent = randn({rows, 5});
    const Tensor inputs[] = {x, cotangent};
    const auto results = run.run(inputs, true);
    x = x.clone().requires_grad_();
    backward(model(x), cotangent);
    EXPECT_EQ(max_difference(results.at(1), x.grad()), 0) << rows;
  }
}

TEST(Contract3_3, OutputsMayHaveSizesDerivedFromTheInputs) {
  const auto model = function_model([](const Tensor& x) {
    return gelu(narrow(x * 2.0, 1, x.size(1) / Dim(2), x.size(1) - x.size(1) / Dim(2)));
  });
  const VerifyReport report =
      verify(create_schedule(model, {{"x", randn({3, 6})}}), {.whole = true});
  EXPECT_TRUE(report.ok()) << report.to_string();
  const auto bound = std::count_if(report.results.begin(), report.results.end(),
                                   [](const Comparison& c) { return c.bound; });
  EXPECT_EQ(bound, 4);  // output and gradient, in two modes
}

TEST(Contract3_3, TheTutorialModelDifferentiatesThroughTheWholePath) {
  const auto model = nn::make<tutorial::Attention>(kHidden, kHeads);
  const Tensor example = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"hidden_states", example}});
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
  const VerifyReport report = verify(sch, {.whole = true});
  EXPECT_TRUE(report.ok()) << report.to_string();
  std::size_t gradients = 0;
  for (const Comparison& c : report.results) {
    gradients += c.bound && c.name.starts_with("gradient of ");
  }
  EXPECT_EQ(gradients, 2 * (model->named_parameters().size() + 1)) << report.to_string();
}

TEST(Contract3_4, OneNodePerKernelAndScopesAreAnnotations) {
  const auto model = nn::make<tutorial::Attention>(kHidden, kHeads);
  const Graph graph = create_schedule(model, {{"x", randn({2, 5, kHidden})}}).graph();
  std::vector<ValueId> shared;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (node.op->name != "linear" || !node.name.ends_with("_proj")) continue;
    EXPECT_EQ(graph.call(node.call).type, "Linear");
    shared.push_back(node.inputs[0]);
  }
  ASSERT_EQ(shared.size(), 3U);
  EXPECT_EQ(shared[0], shared[1]);
  EXPECT_EQ(shared[1], shared[2]);
}

TEST(Contract3_5, ADecompositionGivesShapeGradientAndCpuPath) {
  const Op& op = get_op("scaled_dot_product_attention");
  ASSERT_NE(op.decompose, nullptr);
  const Tensor q = randn({2, 3, 5, 4}, {DType::float64});
  const Tensor k = randn({2, 3, 7, 4}, {DType::float64});
  const Tensor v = randn({2, 3, 7, 6}, {DType::float64});
  const Attrs attrs = AttentionAttrs{0, false, 0.5, DropoutMode::follow, 0};
  const std::vector<Tensor> inputs = {q, k, v, Tensor()};
  EXPECT_LT(max_difference(op.decompose(inputs, attrs)[0], apply(op, inputs, attrs)[0]), 1e-14);
  const TensorSpec* specs[] = {&q.spec(), &k.spec(), &v.spec(), nullptr};
  EXPECT_TRUE(infer_by_decomposition(op, specs, attrs)[0].shape.same_as(Shape{2, 3, 5, 6}));
}

TEST(Contract3_6, OneTraceServesEverySizeAndGuardsAreCheckedAtLower) {
  const auto model = function_model(
      [](const Tensor& x) { return x.size(1) == Dim(4) ? sum(x) / Scalar(x.size(0)) : sum(x); });
  Executor run(create_schedule(model, {{"x", randn({2, 4})}}).graph());
  for (const std::int64_t rows : {1, 2, 9}) {
    const Tensor x = randn({rows, 4});
    EXPECT_LT(max_difference(run(x), sum(x) / static_cast<double>(rows)), 1e-6);
  }
  const std::string text = test::error_text<TraceError>([&] { run(randn({2, 5})); });
  EXPECT_NE(text.find("break a guard of the trace: s1 == 4"), std::string::npos) << text;
  const auto steered = function_model([](const Tensor& x) { return x * sum(x).item(); });
  EXPECT_ERROR(TraceError,
               "item() under the tracer: a Graph serves all inputs, so a number computed from one "
               "of them cannot steer it",
               create_schedule(steered, {randn({2})}));
}

}  // namespace
}  // namespace tenon
