// Passes on joint Graphs are verified: wrong ones are refused by name, the real ones agree on models of
// all kinds.
#include <gtest/gtest.h>

#include <optional>
#include <sstream>

#include "examples/attention_model.h"
#include "examples/gpt_model.h"
#include "nn/adam.h"
#include "nn/sgd.h"
#include "schedule/schedules.h"
#include "schedule/training.h"
#include "schedule/training/pass_checks.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/compare.h"
#include "tests/support/count_nodes.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace passes_test {

/// The Graphs around one pass.
struct Passed {
  Graph before;
  Graph after;
};

Tensor squared(std::span<const Tensor> outputs, std::span<const Tensor>) {
  return mean(square(outputs[0]));
}

/// What the pass `name` makes of a step of `sch` that returns the gradients of all parameters.
template <class Model>
Passed passed(const Model& model, const Schedule& sch, const std::string& name) {
  std::optional<Passed> found;
  ModuleTree tree;
  for (const auto& [path, parameter] : model->named_parameters()) {
    tree.states.push_back({path, ValueKind::parameter, parameter});
  }
  for (const auto& [path, buffer] : model->named_buffers()) {
    tree.states.push_back({path, ValueKind::buffer, buffer});
  }
  JointGraph joint(sch.graph(), tree);
  joint.record(
      [&](std::span<const Tensor> outputs) {
        std::vector<Tensor> results{squared(outputs, {})};
        std::vector<Tensor> wanted;
        for (const auto& [path, parameter] : model->named_parameters()) wanted.push_back(parameter);
        for (const Tensor& gradient : grad(std::span(results.data(), 1), wanted, {},
                                           {.allow_unused = true, .leaf_hooks = false})) {
          if (gradient) results.push_back(gradient);
        }
        return results;
      },
      {},
      [&](const char* pass, const Graph& before, const Graph& after) {
        if (pass == name) found = Passed{before, after};
      });
  return found.value();
}

std::vector<NodeId> nodes_of(const Graph& graph, const std::string& op) {
  std::vector<NodeId> found;
  for (const NodeId id : graph.order()) {
    if (graph.node(id).op->name == op) found.push_back(id);
  }
  return found;
}

/// The pass as it is agrees; as `spoil` makes it, it is refused in its name.
void expect_refused(const Passed& passed, const char* pass,
                    const std::function<void(Graph&)>& spoil) {
  detail::PassChecks checks("build_training");
  ASSERT_NO_THROW(checks.compare(pass, passed.before, passed.after)) << to_text(passed.after);
  EXPECT_GE(checks.regions(), 1U);
  Graph wrong = passed.after;
  spoil(wrong);
  const std::string text = test::error_text<VerificationError>(
      [&] { detail::PassChecks("build_training").compare(pass, passed.before, wrong); });
  EXPECT_EQ(text.find(std::string("build_training refused: the pass ") + pass), 0U) << text;
  EXPECT_NE(text.find("FAIL"), std::string::npos) << text;
}

/// x + down(gelu(up(x))), twice, with up and its GELU as one op, as the ready-made schedule writes it.
struct Mlps : nn::Module {
  Mlps() {
    for (const char* name : {"a", "b"}) {
      ups.push_back(add<nn::Linear>(std::string(name) + "_up", 6, 12));
      downs.push_back(add<nn::Linear>(std::string(name) + "_down", 12, 6));
    }
  }
  Tensor forward(const Tensor& x) const {
    Tensor y = x;
    for (std::size_t i = 0; i < ups.size(); ++i) {
      const Tensor inner = linear_gelu(y, ups[i]->weight, ups[i]->bias, Approximate::tanh);
      y = y + dropout(downs[i](inner), 0.2);
    }
    return y;
  }
  std::vector<nn::Child<nn::Linear>> ups, downs;
};

TEST(Passes, AccumulationOfTheWrongTermIsRefused) {
  const auto model = nn::make<Mlps>();
  const Schedule sch = create_schedule(model, {{"x", randn({3, 5, 6})}});
  const Passed step = passed(model, sch, "accumulate_gradients");
  const auto sums = nodes_of(step.after, "matmul_add");
  ASSERT_FALSE(sums.empty()) << to_text(step.after);
  expect_refused(step, "accumulate_gradients", [&](Graph& graph) {  // a term is another's
    const Node& sum = graph.node(sums.back());
    graph.set_operand(sum.id, 2, graph.inputs()[0]);
  });
  expect_refused(step, "accumulate_gradients", [&](Graph& graph) {  // a product of another weight
    const Node& sum = graph.node(sums.back());
    for (const ValueId id : graph.values()) {
      const Value& weight = graph.value(id);
      const Value& own = graph.value(sum.inputs[1]);
      if (id != own.id && weight.tensor && weight.spec.shape.same_as(own.spec.shape)) {
        graph.set_operand(sum.id, 1, id);
        return;
      }
    }
    FAIL() << to_text(graph);
  });
}

TEST(Passes, SlicesInTheWrongOrderAreRefused) {
  struct Model : nn::Module {
    Model() : up(add<nn::Linear>("up", 6, 12)) {}
    Tensor forward(const Tensor& x) const {
      const auto parts = chunk(up(x), 3, -1);
      return parts[0] * gelu(parts[1]) + sin(parts[2]);
    }
    nn::Child<nn::Linear> up;
  };
  const auto model = nn::make<Model>();
  const Schedule sch = create_schedule(model, {{"x", randn({3, 5, 6})}});
  const Passed step = passed(model, sch, "join_slices");
  expect_refused(step, "join_slices", [&](Graph& graph) {
    const Node joined = graph.node(nodes_of(graph, "cat").at(0));
    graph.set_operand(joined.id, 0, joined.inputs[1]);
    graph.set_operand(joined.id, 1, joined.inputs[0]);
  });
}

TEST(Passes, TheSlopeOfAnotherActivationIsRefused) {
  const auto model = nn::make<Mlps>();
  const Schedule sch = create_schedule(model, {{"x", randn({3, 5, 6})}});
  const Passed step = passed(model, sch, "fuse_gelu_gradients");
  const auto fused = nodes_of(step.after, "matmul_gelu_backward");
  ASSERT_EQ(fused.size(), 2U) << to_text(step.after);
  expect_refused(step, "fuse_gelu_gradients", [&](Graph& graph) {
    graph.set_operand(fused[0], 2, step.after.node(fused[1]).inputs[2]);
  });
}

TEST(Passes, RecomputationWithAnotherMaskIsRefused) {
  struct Block : nn::Module {
    Block() : up(add<nn::Linear>("up", 6, 6)), down(add<nn::Linear>("down", 6, 6)) {}
    Tensor forward(const Tensor& x) const { return down(sin(dropout(gelu(up(x)), 0.3))); }
    nn::Child<nn::Linear> up, down;
  };
  const auto model = nn::make<test::Stack<Block>>(2);
  Schedule sch = create_schedule(model, {{"x", randn({3, 5, 6})}});
  sch["layer.0"].checkpoint();
  sch["layer.1"].checkpoint();
  const Passed step = passed(model, sch, "recompute_regions");
  const auto again = [&](const Graph& graph, const std::string& op) {
    for (const NodeId id : nodes_of(graph, op)) {
      if (graph.node(id).recomputed) return id;
    }
    throw InternalError("nothing was recomputed");
  };
  Graph wrong = step.after;
  const NodeId mask = again(wrong, "dropout");
  const Attrs& attrs = wrong.node(mask).attrs;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    if (attrs.name(i) == "site") wrong.set_attribute(mask, i, std::int64_t{77});
  }
  const std::string text = test::error_text<VerificationError>(
      [&] { detail::PassChecks("build_training").compare("recompute", step.before, wrong); });
  EXPECT_NE(text.find("what the model does not draw is drawn: site 77 p 0.3"), std::string::npos)
      << text;
  EXPECT_NE(text.find("FAIL output"), std::string::npos) << text;

  // The second run of the last layer, the first one written, reads what the first layer does.
  wrong = step.after;
  wrong.set_operand(again(wrong, "linear"), 0, wrong.inputs()[0]);
  EXPECT_THROW(detail::PassChecks("build_training").compare("recompute", step.before, wrong),
               VerificationError);
}

TEST(Passes, LostResultsAreRefused) {
  const auto model = nn::make<nn::BatchNorm2d>(3);
  const Schedule sch = create_schedule(model, {{"x", randn({2, 3, 4, 4})}});
  const Passed step = passed(model, sch, "accumulate_gradients");
  ASSERT_FALSE(step.after.writes().empty());
  Graph wrong = step.after;
  wrong.drop_write(wrong.writes()[0].state);
  const std::string text = test::error_text<VerificationError>(
      [&] { detail::PassChecks("build_training").compare("any", step.before, wrong); });
  EXPECT_NE(text.find("FAIL %running_mean is written no more"), std::string::npos) << text;
  wrong = step.after;
  std::vector<ValueId> outputs = wrong.outputs();
  outputs.pop_back();
  wrong.set_outputs(outputs);
  EXPECT_THROW(detail::PassChecks("build_training").compare("any", step.before, wrong),
               VerificationError);
}

// --- the real passes ---------------------------------------------------------------------------------

std::size_t verified_regions(const std::string& log) {
  const std::string start = "passes: verified ";
  const std::size_t at = log.find(start);
  return at == std::string::npos ? 0 : std::stoul(log.substr(at + start.size()));
}

/// The log of build_training, after the step ran once.
std::string build_and_run(const Schedule& sch, TrainingOptions options,
                          const std::vector<Tensor>& batch) {
  std::ostringstream log;
  options.log = &log;
  TrainingStep step = build_training(sch, options);
  for (int i = 0; i < options.micro_batches; ++i) step.run(batch);
  const std::string text = log.str();
  EXPECT_NE(text.find("build_training: passes: "), std::string::npos) << text;
  EXPECT_EQ(text.find("do NOT"), std::string::npos) << text;
  return text;
}

template <class Model>
std::shared_ptr<nn::Optimizer> adamw(const Model& model) {
  return std::make_shared<nn::AdamW>(model->named_parameters(), nn::AdamWOptions{.lr = 1e-3},
                                     nn::OptimizerOptions{.max_grad_norm = 1});
}

/// The head's weight is the tokens'.
struct TiedGpt : nn::Module {
  explicit TiedGpt(const gpt::GptOptions& options)
      : tokens(add<nn::Embedding>("tokens", options.vocabulary, options.hidden)),
        blocks(add<nn::ModuleList<gpt::Block>>("blocks")),
        norm(add<nn::LayerNorm>("norm", options.hidden)),
        head(add<nn::Linear>("head", tokens->weight)) {
    for (std::int64_t i = 0; i < options.layers; ++i) blocks->emplace_back(options);
  }
  Tensor forward(const Tensor& input) const {
    Tensor x = tokens(input);
    for (const auto& block : *blocks) x = block(x);
    return head(norm(x));
  }
  nn::Child<nn::Embedding> tokens;
  nn::Child<nn::ModuleList<gpt::Block>> blocks;
  nn::Child<nn::LayerNorm> norm;
  nn::Child<nn::Linear> head;
};

Tensor token_loss(std::span<const Tensor> outputs, std::span<const Tensor> targets) {
  return gpt::next_token_loss(outputs[0], targets[0]);
}

TEST(Passes, AgreeOnAGptWithTiedEmbedding) {
  const gpt::GptOptions options{
      .vocabulary = 11, .context = 16, .layers = 2, .hidden = 16, .heads = 2, .dropout = 0.1};
  const auto model = nn::make<TiedGpt>(options);
  const Tensor tokens = randint(0, 11, {2, 9});
  for (const int micro_batches : {1, 2}) {
    for (const bool checkpointed : {false, true}) {
      Schedule sch = create_schedule(model, {{"tokens", tokens}});
      schedules::gpt(sch);
      if (checkpointed) sch["blocks.0"].checkpoint();
      const std::string log = build_and_run(sch,
                                            {.loss = token_loss,
                                             .targets = {{"targets", tokens}},
                                             .optimizer = adamw(model),
                                             .micro_batches = micro_batches},
                                            {tokens, tokens});
      EXPECT_GE(verified_regions(log), 4U) << log;
    }
  }
}

TEST(Passes, AgreeOnEncoderLayers) {
  const auto model = nn::make<test::Stack<test::EncoderLayer>>(3, 16);
  const Tensor x = randn({2, 9, 16});
  for (const bool checkpointed : {false, true}) {
    Schedule sch = create_schedule(model, {{"x", x}});
    schedules::transformer_encoder(sch);
    if (checkpointed) {
      for (int i = 0; i < 3; ++i) sch["layer." + std::to_string(i)].checkpoint();
    }
    const std::string log =
        build_and_run(sch,
                      {.loss = squared,
                       .optimizer = std::make_shared<nn::SGD>(
                           model->named_parameters(), nn::SgdOptions{.lr = 0.1, .momentum = 0.9})},
                      {x});
    EXPECT_GE(verified_regions(log), checkpointed ? 8U : 5U) << log;
  }
}

TEST(Passes, AgreeOnDiscardedActivations) {
  const auto model = nn::make<test::Stack<test::EncoderLayer>>(3, 16);
  const Tensor x = randn({2, 9, 16});
  Schedule sch = create_schedule(model, {{"x", x}});
  schedules::transformer_encoder(sch);
  const auto is_cheap = [](const Node& node) {
    return node.op->name == "layer_norm" || node.op->name == "linear_gelu";
  };
  sch.checkpoint(sch.find(is_cheap), {.keep_results = false});
  const std::string log = build_and_run(sch, {.loss = squared, .optimizer = adamw(model)}, {x});
  EXPECT_NE(log.find("recompute_regions 3 of 1"), std::string::npos) << log;
  EXPECT_NE(log.find("fuse_gelus_again 3 of 1"), std::string::npos) << log;
}

TEST(Passes, AgreeOnAnAttentionBlockWithFusedQueriesKeysAndValues) {
  const auto model = nn::make<tutorial::Attention>(16, 4);
  const Tensor x = randn({2, 9, 16});
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.replace(nn::make<tutorial::FusedQKV>(16, 4), sch.find(test::qkv_pattern(4)));
  const std::string log = build_and_run(sch, {.loss = squared, .optimizer = adamw(model)}, {x});
  EXPECT_GE(verified_regions(log), 1U) << log;
}

TEST(Passes, AgreeOnAResidualMlpInEveryFloatingDtype) {
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
    const auto model = nn::make<test::Stack<test::ResidualMlp>>(2, 16);
    model->to(dtype);
    const Tensor x = randn({3, 5, 16}).to(dtype);
    const std::string log =
        build_and_run(create_schedule(model, {{"x", x}}),
                      {.loss = squared, .optimizer = adamw(model), .micro_batches = 2}, {x});
    EXPECT_GE(verified_regions(log), 2U) << log;
  }
}

struct ConvNet : nn::Module {
  ConvNet()
      : conv(add<nn::Conv2d>("conv", 3, 6, 3)),
        norm(add<nn::BatchNorm2d>("norm", 6)),
        head(add<nn::Linear>("head", 6, 4)),
        other(add<nn::Linear>("other", 6, 4)) {}
  Tensor forward(const Tensor& x) const {
    const Tensor features = mean(relu(norm(conv(x))), {2, 3});
    return head(features) * other(features);
  }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
  nn::Child<nn::Linear> head, other;
};

TEST(Passes, AgreeOnAConvolutionWithRunningStatistics) {
  const auto model = nn::make<ConvNet>();
  const Tensor x = randn({4, 3, 8, 8});
  const std::string log = build_and_run(create_schedule(model, {{"x", x}}),
                                        {.loss = squared, .optimizer = adamw(model)}, {x});
  EXPECT_GE(verified_regions(log), 1U) << log;
}

TEST(Passes, ReturnedGradientsAndPrintsStay) {
  const auto model = nn::make<test::Stack<test::ResidualMlp>>(2, 16);
  const Tensor x = randn({3, 5, 16});
  Schedule sch = create_schedule(model, {{"x", x}});
  sch["layer.1"].print("block");
  EXPECT_GE(verified_regions(build_and_run(sch, {.loss = squared}, {x})), 1U);
}

TEST(Passes, WhatIsSwitchedOffIsNotVerified) {
  const auto model = nn::make<test::Stack<test::EncoderLayer>>(2, 16);
  const Tensor x = randn({2, 9, 16});
  Schedule sch = create_schedule(model, {{"x", x}});
  schedules::transformer_encoder(sch);
  const JointPasses none{
      .join_slices = false, .fuse_gelu_gradient = false, .accumulate = false, .recompute = false};
  const std::string log =
      build_and_run(sch, {.loss = squared, .optimizer = adamw(model), .passes = none}, {x});
  EXPECT_NE(log.find("passes: nothing was rewritten"), std::string::npos) << log;
  std::ostringstream silent;
  build_training(sch, {.loss = squared, .verify = false, .log = &silent});
  EXPECT_EQ(silent.str(), "");
}

}  // namespace passes_test
}  // namespace tenon
