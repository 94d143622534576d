// The tracer: what is recorded, under which names, with which sizes and guards.
#include <gtest/gtest.h>

#include "examples/attention_model.h"
#include "graph/verify.h"
#include "schedule/schedule.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

std::vector<std::string> node_names(const Graph& graph) {
  std::vector<std::string> names;
  for (NodeId id : graph.order()) names.push_back(graph.full_name(id));
  return names;
}

TEST(Tracer, NamesNodesByModulePath) {
  const auto model = nn::make<tutorial::Attention>(16, 2);
  const Schedule sch = create_schedule(model, {{"hidden_states", randn({2, 5, 16})}});
  const std::vector<std::string> expected = {
      "self_attn.q_proj",    "self_attn.view",      "self_attn.permute",  "self_attn.k_proj",
      "self_attn.view_1",    "self_attn.permute_1", "self_attn.v_proj",   "self_attn.view_2",
      "self_attn.permute_2", "self_attn.transpose", "self_attn.matmul",   "self_attn.div",
      "self_attn.softmax",   "self_attn.dropout",   "self_attn.matmul_1", "self_attn.permute_3",
      "self_attn.reshape",   "proj.dense",          "proj.dropout",       "proj.add",
      "proj.layer_norm"};
  EXPECT_EQ(node_names(sch.graph()), expected);
  EXPECT_NO_THROW(verify(sch.graph()));
}

TEST(Tracer, PrintsTheGraph) {
  const auto model = function_model([](const Tensor& x) { return relu(x) * 2.0 + x; });
  const Schedule sch = create_schedule(model, {{"x", randn({2, 3})}});
  EXPECT_EQ(to_text(sch.graph()),
            "graph(%x: float32(s0, s1))\n"
            "  %relu = relu(%x) : float32(s0, s1)\n"
            "  %mul = mul(%relu, none, other=2) : float32(s0, s1)\n"
            "  %add = add(%mul, %x, other=0) : float32(s0, s1)\n"
            "  return %add\n");
}

TEST(Tracer, SizesAreSymbolsAndBindToParameters) {
  const auto model = nn::make<tutorial::Attention>(16, 2);
  const Schedule sch = create_schedule(model, {{"hidden_states", randn({2, 5, 16})}});
  const Graph& graph = sch.graph();
  EXPECT_EQ(graph.value(graph.outputs()[0]).spec.shape.to_string(), "(s0, s1, 16)");
  ASSERT_EQ(graph.guards()->guards.size(), 1U);
  EXPECT_EQ(graph.guards()->guards[0].to_string(), "s2 == 16");
}

TEST(Tracer, OneTraceRunsEverySize) {
  const auto model = nn::make<tutorial::Attention>(16, 2);
  model->eval();
  const Schedule sch = create_schedule(model, {{"hidden_states", randn({2, 5, 16})}});
  Executor run(sch.graph());
  for (const auto& [batch, seq] : {std::pair{1, 1}, {1, 128}, {3, 77}, {5, 2}}) {
    const Tensor x = randn({batch, seq, 16});
    EXPECT_LT(max_difference(run(x), model(x)), 1e-5) << batch << " x " << seq;
  }
  EXPECT_EQ(run(randn({0, 4, 16})).shape().to_string(), "(0, 4, 16)");
}

TEST(Tracer, BrokenGuardIsNamed) {
  const auto model =
      function_model([](const Tensor& x) { return x.size(0) == Dim(4) ? x + 1.0 : x + 2.0; });
  const Schedule sch = create_schedule(model, {{"x", randn({4, 3})}});
  Executor run(sch.graph());
  EXPECT_NO_THROW(run(randn({4, 9})));
  EXPECT_ERROR(TraceError,
               "[lower] these input sizes break a guard of the trace: s0 == 4 (the model fixed "
               "that size, or took a branch on it; trace it again for other sizes)",
               run(randn({5, 3})));
}

TEST(Tracer, NumbersAreRefused) {
  const auto model = function_model([](const Tensor& x) { return sum(x).item() > 0 ? x : -x; });
  EXPECT_ERROR(TraceError,
               "item() under the tracer: a Graph serves all inputs, so a number computed from one "
               "of them cannot steer it",
               create_schedule(model, {randn({2})}));
}

TEST(Tracer, TracedTensorsDoNotOutliveTheTrace) {
  Tensor leaked;
  const auto model = function_model([&](const Tensor& x) { return leaked = x * 2.0; });
  create_schedule(model, {randn({2})});
  EXPECT_ERROR(TraceError,
               "[relu] an operand holds no data: it was made inside a trace or a pattern and used "
               "outside of it",
               relu(leaked));
}

TEST(Tracer, CapturedTensorsAreConstantsAndTiedParametersOneState) {
  struct Tied : nn::Module {
    Tied()
        : a(add<nn::Linear>("a", 4, 4, false)),
          b(register_module("b", std::make_shared<nn::Linear>(a->weight))) {}
    Tensor forward(const Tensor& x) const { return b(a(x)) + full({4}, 0.5); }
    nn::Child<nn::Linear> a, b;
  };
  const auto model = nn::make<Tied>();
  const Schedule sch = create_schedule(model, {randn({3, 4})});
  int parameters = 0;
  int constants = 0;
  for (ValueId id : sch.graph().values()) {
    parameters += sch.graph().value(id).kind == ValueKind::parameter;
    constants += sch.graph().value(id).kind == ValueKind::constant;
  }
  EXPECT_EQ(parameters, 1);
  EXPECT_EQ(constants, 1);
  Executor run(sch.graph());
  const Tensor x = randn({3, 4});
  EXPECT_LT(max_difference(run(x), model(x)), 1e-6);
}

TEST(Tracer, TrainingModeIsASymbol) {
  const auto model = function_model([](const Tensor& x) { return dropout(x, 0.5); });
  const Schedule sch = create_schedule(model, {randn({4, 8})});
  Executor run(sch.graph());
  const Tensor x = ones({64, 64});
  EXPECT_EQ(max_difference(run(x), x), 0);
  manual_seed(7);
  const Tensor inputs[] = {x};
  const Tensor trained = run.run(inputs, true).at(0);
  EXPECT_GT(max_difference(trained, x), 0.5);
  // The same seed and forward number give eager code the same mask.
  manual_seed(7);
  model->train();
  EXPECT_EQ(max_difference(model(x), trained), 0);
}

TEST(Tracer, SubmoduleWithItsOwnModeKeepsIt) {
  const auto model = nn::make<test::ResidualMlp>(8);
  model->drop->eval();
  const Schedule sch = create_schedule(model, {randn({2, 8})});
  Executor run(sch.graph());
  const Tensor x = randn({5, 8});
  const Tensor inputs[] = {x};
  EXPECT_LT(max_difference(run.run(inputs, true).at(0), run(x)), 1e-6);
}

}  // namespace
}  // namespace tenon
