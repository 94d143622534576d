// Rows 25 and 27-31 of the feature table: seeded dropout, annotations, verification, build, printing and
// the two modes of one schedule.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "examples/attention_model.h"
#include "nn/sgd.h"
#include "schedule/schedule_json.h"
#include "tensor/device_backend.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace feature_table_running_test {

using test::expect_equivalent;
using test::expect_refused;
using test::function_model;
using test::initialized;
using test::same_values;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 4;

Tensor tail(const Tensor& x, const Tensor& bias, const Tensor& residual, const Tensor& weight,
            const Tensor& norm_bias) {
  return layer_norm(dropout(x + bias, 0.1) + residual, weight, norm_bias);
}

void fuse_qkv(Schedule& sch) {
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
}

/// The tutorial's whole schedule, and recomputation on top.
void schedule_attention(Schedule& sch) {
  fuse_qkv(sch);
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
  Schedule proj = sch["proj"];
  proj["dense"].decompose();
  proj.trace({.flatten = true});
  proj.fuse(proj.find(tail), {.name = "FusedLayerNorm"});
  sch["self_attn"].checkpoint();
}

// --- row 25 -------------------------------------------------------------------------------------

/// Two dropouts on ones: its results are the masks.
struct Masks : nn::Module {
  Masks() : first(add<nn::Dropout>("first", 0.5)), second(add<nn::Dropout>("second", 0.5)) {}
  std::vector<Tensor> forward(const Tensor& x) const { return {first(x), second(x), first(x)}; }
  nn::Child<nn::Dropout> first, second;
};

TEST(FeatureTable, Row25_MasksDifferBySiteAndForwardAndRepeatBySeed) {
  const auto model = nn::make<Masks>();
  const std::vector<Tensor> inputs = {ones({8, 64})};
  Executor run = build(create_schedule(model, {{"x", inputs[0]}}));
  const auto masks = [&](std::uint64_t seed) {
    manual_seed(seed);
    return run.run(inputs, true);
  };
  const std::vector<Tensor> one = masks(1);
  const std::vector<Tensor> next = run.run(inputs, true);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(same_values(one[i], masks(1)[i])) << i;
    EXPECT_FALSE(same_values(one[i], next[i])) << i;
    EXPECT_FALSE(same_values(one[i], masks(2)[i])) << i;
    EXPECT_FALSE(same_values(one[i], one[(i + 1) % 3])) << i;  // two calls of one module as well
  }
  manual_seed(1);
  const std::vector<Tensor> eager = model.call(inputs);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_values(one[i], eager[i])) << i;
}

TEST(FeatureTable, Row25_RewritesKeepEveryMask) {
  // Each rewrite in front of, around or behind the dropouts; what follows them shows their masks.
  const auto model = function_model([](const Tensor& x) {
    const Tensor a = dropout(relu(x) * 2.0, 0.5);
    const Tensor b = dropout(relu(x) * 2.0, 0.5);
    return a - b * 0.25;
  });
  const std::vector<Tensor> inputs = {ones({8, 64})};
  const auto at_seed = [&](const Schedule& sch) {
    manual_seed(test::kSeed);
    return build(sch).run(inputs, true).at(0);
  };
  const auto fresh = [&] { return create_schedule(model, {{"x", inputs[0]}}); };
  const Tensor expected = at_seed(fresh());
  const auto pattern = [](const Tensor& x) { return relu(x) * 2.0; };
  const auto with_dropout = [](const Tensor& x) { return dropout(relu(x) * 2.0, any()); };

  Schedule before = fresh();
  before.replace([](const Tensor& x) { return relu(x) + relu(x); }, before.find(pattern));
  EXPECT_TRUE(same_values(at_seed(before), expected));
  Schedule around = fresh();
  around.replace([](const Tensor& x) { return dropout(relu(x), 0.5) * 2.0; },
                 around.find(with_dropout));
  EXPECT_TRUE(same_values(at_seed(around), expected));
  Schedule second_only = fresh();  // the second site keeps its number when it alone is replaced
  Matches matches = second_only.find(with_dropout);
  ASSERT_EQ(matches.size(), 2U);
  second_only.replace([](const Tensor& x) { return dropout(relu(x), 0.5) * 2.0; },
                      Matches(matches[1]));
  EXPECT_TRUE(same_values(at_seed(second_only), expected));
  Schedule again = fresh();
  again.checkpoint(again.find(with_dropout));
  EXPECT_TRUE(same_values(at_seed(again), expected));
  expect_refused(again, "the matched nodes drop at 1 place in training, function at 0", [&] {
    again.replace([](const Tensor& x) { return relu(x) * 2.0; }, again.find(with_dropout));
  });
}

// --- row 27 -------------------------------------------------------------------------------------

TEST(FeatureTable, Row27_AnnotationsSurviveRewritesAndSaving) {
  const auto model = initialized<tutorial::Attention>(kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"hidden_states", x}});
  const std::string untouched = save_schedule(sch);
  sch.annotate("self_attn.q_proj.weight", "placement", "packed");
  sch["self_attn"].annotate("k_proj", "note", "with \"quotes\" and\nlines");
  sch["proj"].annotate("", "owner", "tail");
  schedule_attention(sch);  // q_proj and k_proj are replaced, proj is fused
  const auto expect_there = [](const Schedule& of) {
    EXPECT_EQ(of.annotation("self_attn.q_proj.weight", "placement"), "packed");
    EXPECT_EQ(of["self_attn"].annotation("q_proj.weight", "placement"), "packed");
    EXPECT_EQ(of.annotation("self_attn.k_proj", "note"), "with \"quotes\" and\nlines");
    EXPECT_EQ(of["proj"].annotation("", "owner"), "tail");
    EXPECT_EQ(of.annotation("self_attn.q_proj.weight", "other"), std::nullopt);
    EXPECT_EQ(of.annotation("nowhere", "placement"), std::nullopt);
  };
  expect_there(sch);
  build(sch);
  expect_there(sch);
  Schedule loaded =
      create_schedule(initialized<tutorial::Attention>(kHidden, kHeads), {{"hidden_states", x}});
  load_schedule(loaded, save_schedule(sch));
  expect_there(loaded);
  // A new value takes the place of the old one, and goes with an undo.
  sch.annotate("self_attn.q_proj.weight", "placement", "sharded");
  EXPECT_EQ(sch.annotation("self_attn.q_proj.weight", "placement"), "sharded");
  sch.undo();
  expect_there(sch);
  while (!sch.applied().empty()) sch.undo();
  EXPECT_EQ(sch.annotation("self_attn.q_proj.weight", "placement"), std::nullopt);
  EXPECT_EQ(save_schedule(sch), untouched);
  expect_refused(sch, "annotate refused: the key is empty",
                 [&] { sch.annotate("proj", "", "value"); });
}

// --- row 28 -------------------------------------------------------------------------------------

TEST(FeatureTable, Row28_VerificationIsOnAndSeesTheFusionThroughItsWeightMap) {
  const auto model = initialized<tutorial::Attention>(kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"hidden_states", x}});
  fuse_qkv(sch);
  const VerifyReport report = verify(sch, {.whole = true});
  EXPECT_TRUE(report.ok()) << report.to_string();
  // Every parameter under the model's own names, in both modes, and the input.
  std::vector<std::string> names = {"input hidden_states"};
  for (const auto& [name, tensor] : model->named_parameters()) names.push_back(name);
  for (const std::string& name : names) {
    for (const bool training : {false, true}) {
      EXPECT_TRUE(std::any_of(report.results.begin(), report.results.end(),
                              [&](const Comparison& result) {
                                return result.name == "gradient of " + name &&
                                       result.training == training;
                              }))
          << name;
    }
  }
  // Its cost is stated.
  EXPECT_GT(report.milliseconds, 0);
  EXPECT_NE(report.to_string().find("verified 1 rewritten region"), std::string::npos);

  // The same fusion with two of its sources exchanged is well-formed and wrong.
  Schedule wrong = create_schedule(model, {{"hidden_states", x}});
  wrong.replace(
      nn::make<tutorial::FusedQKV>(kHidden, kHeads), wrong.find(test::qkv_pattern(kHeads)),
      {.weights = {{"fused_linear.weight", cat("q_proj.weight", "v_proj.weight", "k_proj.weight")},
                   {"fused_linear.bias", cat("q_proj.bias", "v_proj.bias", "k_proj.bias")}}});
  const std::string message = test::error_text<VerificationError>([&] { build(wrong); });
  EXPECT_EQ(message.find("build refused: the scheduled model differs from the model"), 0U)
      << message;
  EXPECT_NE(message.find("FAIL output 0 (eval)"), std::string::npos) << message;
  const TrainingOptions options = {.loss = [](auto y, auto) { return mean(square(y[0])); }};
  EXPECT_THROW(build_training(wrong, options), VerificationError);
  EXPECT_NO_THROW(build(wrong, {.verify = false}));
}

TEST(FeatureTable, Row28_AWrongGradientIsCaughtWhereOutputsAgree) {
  const auto model = initialized<test::ResidualMlp>(kHidden);
  const std::vector<Tensor> inputs = {randn({3, kHidden})};
  const auto scheduled = [&](auto replacement) {
    Schedule sch = create_schedule(model, {{"x", inputs[0]}});
    sch.replace(replacement, sch.find([](const Tensor& y) { return gelu(y); }));
    return sch;
  };
  // No gradient at all is refused as soon as the replacement is recorded.
  Schedule cut = create_schedule(model, {{"x", inputs[0]}});
  const Matches activation = cut.find([](const Tensor& y) { return gelu(y); });
  expect_refused(cut, "output 0 is no longer differentiable by %up.weight", [&] {
    cut.replace([](const Tensor& y) { return gelu(y).detach(); }, activation);
  });
  // The value of gelu with another gradient takes a run to tell.
  const Schedule negated =
      scheduled([](const Tensor& y) { return gelu(y).detach() * 2.0 - gelu(y); });
  const Schedule halved =
      scheduled([](const Tensor& y) { return (gelu(y) + gelu(y).detach()) * 0.5; });
  for (const Schedule& sch : {negated, halved}) {
    const VerifyReport report = verify(sch);
    EXPECT_FALSE(report.ok());
    for (const Comparison& result : report.results) {
      if (result.name == "output 0") {
        EXPECT_TRUE(result.ok) << report.to_string();
      }
    }
    EXPECT_NE(report.to_string().find("FAIL gradient of %act"), std::string::npos)
        << report.to_string();
    EXPECT_THROW(build(sch), VerificationError);
  }
}

// --- row 29 -------------------------------------------------------------------------------------

class FeatureTableBuild : public ::testing::TestWithParam<DeviceType> {};

TEST_P(FeatureTableBuild, Row29_LeavesWeightsAsTheyAre) {
  const Device device{GetParam(), 0};
  if (!is_available(device)) GTEST_SKIP() << "no " << device.to_string() << " device";
  struct Model : nn::Module {
    Model()
        : tokens(add<nn::Embedding>("tokens", 11, kHidden)),
          layer(add<test::EncoderLayer>("layer", kHidden)),
          head(register_module("head", nn::make<nn::Linear>(tokens->weight))),
          scale(register_parameter("scale", full({kHidden}, 1.5))),  // of no leaf module
          offset(register_buffer("offset", full({kHidden}, 0.25))) {}
    Tensor forward(const Tensor& x) const { return head(layer(tokens(x) * scale + offset)); }
    nn::Child<nn::Embedding> tokens;
    nn::Child<test::EncoderLayer> layer;
    nn::Child<nn::Linear> head;
    Tensor scale, offset;
  };
  const auto model = initialized<Model>();
  model->to(device);
  model->submodule("layer.mlp_norm").requires_grad_(false);
  const Tensor x = from_vector<std::int64_t>({1, 4, 10, 0, 4, 7}, {2, 3}, device);
  std::vector<std::pair<std::string, Tensor>> before;
  for (const auto& [name, tensor] : model->state_dict()) before.emplace_back(name, tensor.clone());
  const nn::StateDict handles = model->state_dict();

  Schedule sch = create_schedule(model, {{"tokens", x}});
  Executor plain = build(sch);
  sch.fuse_parallel(sch.find("layer\\.(query|key|value)"));
  Executor fused = build(sch);
  build_training(sch, {.loss = [](auto y, auto) { return mean(square(y[0])); }});
  const nn::StateDict after = model->state_dict();
  ASSERT_EQ(after.size(), before.size());
  for (const auto& [name, tensor] : before) {
    EXPECT_TRUE(after.at(name).is_same(handles.at(name))) << name;
    EXPECT_TRUE(same_values(after.at(name).contiguous(), tensor)) << name;
    EXPECT_EQ(after.at(name).requires_grad(),
              name != "offset" && name.find("mlp_norm") == std::string::npos)
        << name;
  }
  EXPECT_TRUE(model->parameter("tokens.weight").is_same(model->parameter("head.weight")));
  model->eval();
  test::expect_close(fused(x), model(x), 2e-5, "output");
}

INSTANTIATE_TEST_SUITE_P(Devices, FeatureTableBuild,
                         ::testing::Values(DeviceType::cpu, DeviceType::cuda),
                         [](const auto& device) {
                           return device.param == DeviceType::cpu ? "cpu" : "cuda";
                         });

// --- row 30 -------------------------------------------------------------------------------------

/// Collects what print nodes write.
class PrintedLines {
 public:
  PrintedLines() : before_(set_print_stream(&stream_)) {}
  ~PrintedLines() { set_print_stream(before_); }
  PrintedLines(const PrintedLines&) = delete;
  PrintedLines& operator=(const PrintedLines&) = delete;
  /// How many lines there were with `text` in them since the last call.
  int take(const std::string& text) {
    int count = 0;
    std::istringstream lines(stream_.str());
    for (std::string line; std::getline(lines, line);) {
      count += line.find(text) != std::string::npos;
    }
    stream_.str("");
    return count;
  }

 private:
  std::ostringstream stream_;
  std::ostream* before_;
};

TEST(FeatureTable, Row30_APrintNodePrintsAtEveryRunAndIsKept) {
  const auto model = initialized<test::ResidualMlp>(kHidden);
  const std::vector<Tensor> inputs = {randn({3, kHidden})};
  Schedule sch = create_schedule(model, {{"x", inputs[0]}});
  Executor plain = build(sch);
  sch.print(sch.find([](const Tensor& y) { return gelu(y); }), "after gelu");
  sch["down"].print("projected");
  PrintedLines lines;
  Executor run = build(sch);
  lines.take("");  // verification runs the Graph too
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(same_values(run.run(inputs).at(0), plain.run(inputs).at(0)));
    EXPECT_EQ(lines.take("after gelu %act"), 1);
  }
  run.run(inputs, true);
  EXPECT_EQ(lines.take("projected %down"), 1);

  // Nothing reads it, yet no pass removes, repeats or recomputes it.
  sch["up"].checkpoint();
  sch["act"].checkpoint();
  test::program_step(sch, inputs);
  lines.take("");
  TrainingStep step = build_training(
      sch, {.loss = [](auto y, auto) { return mean(square(y[0])); }, .verify = false});
  step.run(inputs);
  EXPECT_EQ(lines.take("after gelu"), 1);
  test::expect_same_step(test::program_step(sch, inputs), test::eager_step(model, inputs), 2e-5);
  lines.take("");

  // A printed value is no intermediate of a match; without the print it is.
  const auto pattern = [](const Tensor& y, const Tensor& w, const Tensor& b) {
    return linear(gelu(y), w, b);
  };
  EXPECT_TRUE(sch.find(pattern).empty());
  while (!sch.applied().empty()) sch.undo();
  EXPECT_EQ(sch.find(pattern).size(), 1U);
  build(sch).run(inputs);
  EXPECT_EQ(lines.take(""), 0);
}

TEST(FeatureTable, Row30_AModelsOwnPrintIsKeptToo) {
  const auto model = function_model([](const Tensor& x) {
    print(x * 2.0, "doubled");  // the result is used by nothing
    return relu(x);
  });
  PrintedLines lines;
  const std::vector<Tensor> inputs = {ones({3})};
  Executor run = build(create_schedule(model, {{"x", inputs[0]}}));
  lines.take("");
  run.run(inputs);
  EXPECT_EQ(lines.take("doubled"), 1);
}

// --- row 31 -------------------------------------------------------------------------------------

TEST(FeatureTable, Row31_OneScheduleTrainsAndEvaluates) {
  const auto model = initialized<tutorial::Attention>(kHidden, kHeads);
  const std::vector<Tensor> inputs = {randn({3, 7, kHidden})};
  Schedule sch = create_schedule(model, {{"hidden_states", inputs[0]}});
  schedule_attention(sch);
  Executor run = build(sch);
  const std::string graph = to_text(run.graph());
  manual_seed(test::kSeed);
  const Tensor eval = run.run(inputs).at(0);
  const Tensor training = run.run(inputs, true).at(0);
  EXPECT_TRUE(same_values(run.run(inputs).at(0), eval));  // deterministic, whatever ran before
  EXPECT_FALSE(same_values(run.run(inputs, true).at(0), training));  // other masks
  EXPECT_GT(test::max_difference(eval, training), 1e-2);
  EXPECT_EQ(to_text(run.graph()), graph);
  EXPECT_EQ(run.num_programs(), 2U);
  expect_equivalent(model, sch, inputs);

  // The mode is the run's, not the model's at the time of the trace.
  model->eval();
  const Schedule traced_in_eval = create_schedule(model, {{"hidden_states", inputs[0]}});
  Executor other = build(traced_in_eval);
  manual_seed(test::kSeed);
  EXPECT_FALSE(same_values(other.run(inputs, true).at(0), other.run(inputs).at(0)));
  test::expect_close(other.run(inputs).at(0), eval, 2e-5, "eval");
}

}  // namespace feature_table_running_test
}  // namespace tenon
