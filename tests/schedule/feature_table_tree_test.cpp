// Rows 1-6 of the feature table: the schedule tree and its paths, the trace, how nodes are seen, find
// by name and by predicate. Trees and lists are the seed document's.
#include <gtest/gtest.h>

#include <regex>

#include "examples/attention_model.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace {

using test::expect_refused;
using test::function_model;
using test::nodes_seen_in;
using test::same_values;

/// What the seed document prints for its model.
constexpr const char* kSeedTree = R"(Attention(
  (self_attn): SelfAttention(
    (q_proj): Linear(in_features=1024, out_features=1024, bias=True)
    (k_proj): Linear(in_features=1024, out_features=1024, bias=True)
    (v_proj): Linear(in_features=1024, out_features=1024, bias=True)
    (dropout): Dropout(p=0.1, inplace=False)
  )
  (proj): Projection(
    (dense): Linear(in_features=1024, out_features=1024, bias=True)
    (dropout): Dropout(p=0.1, inplace=False)
    (layer_norm): LayerNorm((1024,), eps=1e-05, elementwise_affine=True)
  )
))";

/// What it prints for the three matches of its QKV pattern.
constexpr const char* kSeedMatches =
    "[[('self_attn', q_proj), ('self_attn', getattr_1), ('self_attn', getitem), ('self_attn', "
    "add), "
    "('self_attn', view), ('self_attn', permute)], [('self_attn', k_proj), ('self_attn', "
    "getattr_2), "
    "('self_attn', getitem_1), ('self_attn', add_1), ('self_attn', view_1), ('self_attn', "
    "permute_1)], [('self_attn', v_proj), ('self_attn', getattr_3), ('self_attn', getitem_2), "
    "('self_attn', add_2), ('self_attn', view_2), ('self_attn', permute_2)]]";

/// Sizes are expressions here, so the three nodes by which the seed computes a shape do not exist.
std::string without_shape_nodes(const std::string& matches) {
  return std::regex_replace(matches,
                            std::regex(R"(\('[a-z_]*', (getattr|getitem|add)(_[0-9]+)?\), )"), "");
}

Schedule seed_schedule() {
  return create_schedule(nn::make<tutorial::Attention>(1024, 16),
                         {{"hidden_states", TensorSpec{DType::float32, {2, 5, 1024}, kCpu}}});
}

/// A Sequential in a ModuleList, and a stem of two different layers.
struct Nested : nn::Module {
  Nested()
      : stem(register_module(
            "stem", nn::make<nn::Sequential>(nn::make<nn::Linear>(6, 8), nn::make<nn::Tanh>()))),
        layer(add<nn::ModuleList<nn::Sequential>>("layer")) {
    for (int i = 0; i < 3; ++i) {
      layer->push_back(nn::make<nn::Sequential>(nn::make<nn::LayerNorm>(8), nn::make<nn::GELU>(),
                                                nn::make<nn::Linear>(8, 8)));
    }
  }
  Tensor forward(const Tensor& x) const {
    Tensor y = stem(x);
    for (const auto& block : *layer) y = y + block(y);
    return y;
  }
  nn::Child<nn::Sequential> stem;
  nn::Child<nn::ModuleList<nn::Sequential>> layer;
};

TEST(FeatureTable, Row01_ScheduleTreeAndPaths) {
  const Schedule sch = seed_schedule();
  EXPECT_EQ(sch.to_string(), kSeedTree);
  EXPECT_EQ(sch["self_attn"].path(), "self_attn");
  EXPECT_EQ(sch["self_attn"]["q_proj"].to_string(),
            "Linear(in_features=1024, out_features=1024, bias=True)");
  EXPECT_EQ(sch["proj.layer_norm"].to_string(),
            "LayerNorm((1024,), eps=1e-05, elementwise_affine=True)");
  EXPECT_EQ(sch[""].to_string(), kSeedTree);

  const Schedule nested = create_schedule(nn::make<Nested>(), {randn({3, 6})});
  EXPECT_EQ(nested["layer.0"].to_string(),
            R"(Sequential(
  (0): LayerNorm((8,), eps=1e-05, elementwise_affine=True)
  (1): GELU(approximate='none')
  (2): Linear(in_features=8, out_features=8, bias=True)
))");
  EXPECT_EQ(nested["layer"]["2"]["2"].path(), "layer.2.2");
  EXPECT_EQ(nested["stem.0"].to_string(), "Linear(in_features=6, out_features=8, bias=True)");
  EXPECT_ERROR(ScheduleError,
               "schedule path 'layer.3' does not exist; below 'layer' there are 0, 1, 2",
               nested["layer.3"]);
  EXPECT_ERROR(ScheduleError,
               "schedule path 'stem.0.weight' does not exist; below 'stem.0' there "
               "are no modules",
               nested["stem"]["0.weight"]);
  EXPECT_ERROR(ScheduleError,
               "schedule path 'layers.0' does not exist; below '' there are stem, layer",
               nested["layers.0"]);
}

struct ConvNet : nn::Module {
  ConvNet()
      : conv(add<nn::Conv2d>("conv", 3, 4, 3)),
        norm(add<nn::BatchNorm2d>("norm", 4)),
        pool(add<nn::MaxPool2d>("pool", 2)) {}
  Tensor forward(const Tensor& x) const { return pool(relu(norm(conv(x)))); }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
  nn::Child<nn::MaxPool2d> pool;
};

/// An empty schedule prints as the model does, and what is built from it gives the model's bits.
template <class T>
void expect_unchanged(const nn::Child<T>& model, const Tensor& x) {
  const std::string before = model->to_string();
  const Schedule sch = create_schedule(model, {x});
  EXPECT_EQ(sch.to_string(), before);
  Executor run = build(sch);
  EXPECT_EQ(to_text(sch.graph()), to_text(sch.original()));
  EXPECT_EQ(model->to_string(), before);
  model->eval();
  EXPECT_TRUE(same_values(run(x), model(x))) << before;
  model->train();
  manual_seed(test::kSeed);
  const Tensor inputs[] = {x};
  const Tensor in_training = run.run(inputs, true).at(0);
  manual_seed(test::kSeed);
  EXPECT_TRUE(same_values(in_training, model(x))) << before;
}

TEST(FeatureTable, Row02_AnUnscheduledModelPrintsAndComputesAsItIs) {
  expect_unchanged(nn::make<tutorial::Attention>(16, 2), randn({2, 5, 16}));
  expect_unchanged(nn::make<test::EncoderLayer>(16), randn({2, 5, 16}));
  expect_unchanged(nn::make<test::ResidualMlp>(8), randn({3, 8}));
  expect_unchanged(nn::make<Nested>(), randn({3, 6}));
  expect_unchanged(nn::make<test::Stack<test::ResidualMlp>>(3, 8), randn({3, 8}));
  expect_unchanged(nn::make<ConvNet>(), randn({2, 3, 9, 9}));
}

TEST(FeatureTable, Row02_AScheduleLeavesTheModelAsItIs) {
  const auto model = nn::make<tutorial::Attention>(16, 2);
  const std::string before = model->to_string();
  const Tensor x = randn({2, 5, 16});
  model->eval();
  const Tensor expected = model(x);
  Schedule sch = create_schedule(model, {x});
  sch.replace(nn::make<tutorial::FusedQKV>(16, 2), sch.find(test::qkv_pattern(2)));
  build(sch);
  EXPECT_EQ(model->to_string(), before);
  EXPECT_TRUE(same_values(model(x), expected));
  EXPECT_EQ(sch.to_string().find("q_proj"), std::string::npos);
}

TEST(FeatureTable, Row03_ATraceReplaysBitwiseAtEverySize) {
  // Configuration decides at trace time, sizes stay symbols: fx would need both to be constants.
  struct Model : nn::Module {
    explicit Model(int count) : layer(add<nn::ModuleList<nn::Linear>>("layer")), skip(count > 1) {
      for (int i = 0; i < count; ++i) layer->emplace_back(6, 6);
    }
    Tensor forward(const Tensor& x) const {
      Tensor y = x;
      for (const auto& each : *layer) y = tanh(each(y)) * 0.5;
      if (skip) y = y + x;
      return y.reshape({x.size(0) * x.size(1), -1}) / sqrt(x.size(1));
    }
    nn::Child<nn::ModuleList<nn::Linear>> layer;
    bool skip;
  };
  const auto model = nn::make<Model>(2);
  Executor run = build(create_schedule(model, {randn({2, 3, 6})}));
  for (const auto& [batch, length] : {std::pair{2, 3}, {1, 1}, {4, 17}, {64, 5}}) {
    const Tensor x = randn({batch, length, 6});
    EXPECT_TRUE(same_values(run(x), model(x))) << batch << " x " << length;
  }
}

TEST(FeatureTable, Row03_ADataDependentBranchIsRefusedAtItsItem) {
  struct Gate : nn::Module {
    Tensor forward(const Tensor& x) const { return mean(x).item() > 0 ? relu(x) : -x; }
  };
  struct Model : nn::Module {
    Model() : linear(add<nn::Linear>("linear", 4, 4)), gate(add<Gate>("gate")) {}
    Tensor forward(const Tensor& x) const { return gate(linear(x)); }
    nn::Child<nn::Linear> linear;
    nn::Child<Gate> gate;
  };
  const auto model = nn::make<Model>();
  EXPECT_NO_THROW(model(randn({2, 4})));  // eagerly it is an ordinary model
  const std::string message = test::error_text<TraceError>([&] {
    create_schedule(model, {randn({2, 4})});
  });
  EXPECT_NE(message.find("item() under the tracer: a Graph serves all inputs, so a number computed "
                         "from one of them cannot steer it"),
            std::string::npos)
      << message;
  EXPECT_NO_THROW(model(randn({2, 4})));  // and stays one
}

TEST(FeatureTable, Row03_ABranchOnASizeHoldsForThatSizeOnly) {
  const auto model = function_model(
      [](const Tensor& x) { return x.size(1) > Dim(4) ? sum(x, {1}) : mean(x, {1}); });
  Executor run = build(create_schedule(model, {{"x", randn({2, 6})}}));
  for (const std::int64_t length : {5, 6, 33}) {
    const Tensor x = randn({3, length});
    EXPECT_TRUE(same_values(run(x), model(x))) << length;
  }
  const std::string message = test::error_text<TraceError>([&] { run(randn({2, 4})); });
  EXPECT_NE(message.find("these input sizes break a guard of the trace"), std::string::npos)
      << message;
  // Traced again, the other branch runs.
  Executor again = build(create_schedule(model, {{"x", randn({2, 4})}}));
  const Tensor x = randn({2, 3});
  EXPECT_TRUE(same_values(again(x), model(x)));
}

TEST(FeatureTable, Row04_FindTracesImplicitlyAndPrintsTheSeedsLists) {
  const Schedule sch = seed_schedule();
  const std::string expected = without_shape_nodes(kSeedMatches);
  EXPECT_EQ(sch.find(test::qkv_pattern(16)).to_string(), expected);
  // From the sub-schedule paths are '', as in the tutorial's later version.
  EXPECT_EQ(sch["self_attn"].find(test::qkv_pattern(16)).to_string(),
            std::regex_replace(expected, std::regex("'self_attn'"), "''"));
  EXPECT_EQ(sch["self_attn"].find(tutorial::scaled_dot_product).to_string(),
            "[[('', transpose), ('', matmul), ('', div), ('', softmax), ('', dropout), ('', "
            "matmul_1)]]");
  EXPECT_TRUE(sch["proj"].find(test::qkv_pattern(16)).empty());
  EXPECT_EQ(sch.to_string(), kSeedTree);  // find changes nothing
}

Tensor tail(const Tensor& x, const Tensor& bias, const Tensor& residual, const Tensor& weight,
            const Tensor& norm_bias) {
  return layer_norm(dropout(x + bias, 0.1) + residual, weight, norm_bias);
}

TEST(FeatureTable, Row05_FlattenAndLeafControl) {
  using Names = std::vector<std::string>;
  Schedule sch = create_schedule(nn::make<tutorial::Attention>(16, 2), {randn({2, 5, 16})});
  const Names closed = {"dense", "dropout", "add", "layer_norm"};
  EXPECT_EQ(nodes_seen_in(sch.graph(), "proj"), closed);  // a layer is one node of its parent

  Schedule proj = sch["proj"];
  proj["dense"].decompose();
  EXPECT_EQ(nodes_seen_in(sch.graph(), "proj"), (Names{"dropout", "add", "layer_norm"}));
  EXPECT_EQ(nodes_seen_in(sch.graph(), "proj.dense"), (Names{"linear", "add"}));
  EXPECT_TRUE(proj.find(tail).empty());
  EXPECT_NE(proj.find(tail).explain().find("trace({.flatten = true}) shows them as one"),
            std::string::npos);

  // Step 9 of the tutorial; parameters are no nodes here.
  proj.trace({.flatten = true});
  const Names open = {"linear", "add", "dropout", "add_1", "layer_norm"};
  EXPECT_EQ(nodes_seen_in(sch.graph(), "proj"), open);
  EXPECT_EQ(proj.find(tail).size(), 1U);

  // As a leaf the module stays one call, whose nodes are its own.
  for (const char* leaf : {"dense", "proj.dense", "DecomposedLinear"}) {
    proj.trace({.flatten = true, .leaf_modules = {leaf}});
    EXPECT_EQ(nodes_seen_in(sch.graph(), "proj"), (Names{"dropout", "add_1", "layer_norm"}))
        << leaf;
    EXPECT_EQ(proj.find("dense").size(), 1U) << leaf;
    EXPECT_EQ(proj.find([](const Tensor& x) { return call_module("dense", x); }).size(), 1U)
        << leaf;
    EXPECT_TRUE(proj.find(tail).empty()) << leaf;
  }
  expect_refused(sch, "trace on 'proj' refused: leaf_modules: no module below 'proj' is called 'x'",
                 [&] { proj.trace({.flatten = true, .leaf_modules = {"x"}}); });
  // Hierarchy comes back, and nothing of this changed the computation.
  proj.trace({.flatten = false});
  EXPECT_EQ(nodes_seen_in(sch.graph(), "proj.dense").size(), 2U);
  EXPECT_TRUE(proj.find(tail).empty());
  sch.trace({.flatten = true});
  EXPECT_EQ(nodes_seen_in(sch.graph(), "").size(), sch.graph().order().size());
}

/// Layers whose names begin alike.
struct Numbered : nn::Module {
  Numbered() {
    for (int i = 0; i < 12; ++i) layers.push_back(add<nn::Linear>("fc" + std::to_string(i), 4, 4));
  }
  Tensor forward(const Tensor& x) const {
    Tensor y = x;
    for (const auto& layer : layers) y = relu(layer(y));
    return y;
  }
  std::vector<nn::Child<nn::Linear>> layers;
};

TEST(FeatureTable, Row06_FindByRegexMatchesWholeNames) {
  const Schedule sch = create_schedule(nn::make<Numbered>(), {randn({2, 4})});
  EXPECT_EQ(sch.find("fc1").to_string(), "[[('', fc1)]]");
  EXPECT_EQ(sch.find("fc1[0-9]").to_string(), "[[('', fc10)], [('', fc11)]]");
  EXPECT_EQ(sch.find("fc.*").size(), 12U);
  EXPECT_TRUE(sch.find("fc").empty());
  EXPECT_TRUE(sch.find("c1").empty());
  const std::string message = test::error_text<ScheduleError>([&] { sch.find("fc["); });
  EXPECT_NE(message.find("fc["), std::string::npos) << message;
}

TEST(FeatureTable, Row06_FindByClassAndByPredicate) {
  const Schedule sch = create_schedule(nn::make<Nested>(), {randn({3, 6})});
  EXPECT_EQ(sch.find<nn::Linear>().size(), 4U);
  EXPECT_EQ(sch["layer"].find<nn::Linear>().to_string(), "[[('0', 2)], [('1', 2)], [('2', 2)]]");
  EXPECT_EQ(sch.find<nn::Sequential>().size(), 4U);
  EXPECT_EQ(sch.find<nn::Tanh>().to_string(), "[[('stem', 1)]]");
  EXPECT_TRUE(sch.find<nn::Conv2d>().empty());

  const auto is_tanh = [](const Node& node) { return node.op->name == "tanh"; };
  EXPECT_EQ(sch.find(is_tanh).to_string(), "[[('stem', 1)]]");
  EXPECT_TRUE(sch["layer"].find(is_tanh).empty());
  EXPECT_EQ(sch.find([](const Node& node) { return node.op->name == "add"; }).to_string(),
            "[[('', add)], [('', add_1)], [('', add_2)]]");
}

}  // namespace
}  // namespace tenon
