// Rows 14 and 15 of the feature table: where the weights of a replacing module come from, in both
// directions, and whole modules put in place of others.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "examples/attention_model.h"
#include "nn/adam.h"
#include "nn/checkpoint.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"
#include "tests/support/temp_folder.h"

namespace tenon {
namespace feature_table_weights_test {

using test::expect_equivalent;
using test::expect_refused;
using test::initialized;
using test::same_values;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kDepth = kHidden / kHeads;

auto qkv_heads(const char* regex = "[qkv]_proj") {
  return [regex](const Tensor& x) {
    const Tensor y = call_module(regex, x);
    return y.view({y.size(0), y.size(1), kHeads, -1}).permute({0, 2, 1, 3});
  };
}

void fuse_qkv(Schedule& sch) {
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(qkv_heads()));
}

/// The same names with the same bits, and each name of `names` still its own tensor.
void expect_same_state(const nn::StateDict& a, const nn::StateDict& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) {
    ASSERT_TRUE(b.contains(name)) << name;
    EXPECT_TRUE(same_values(tensor.contiguous(), b.at(name).contiguous())) << name;
  }
}

nn::StateDict copied(const nn::StateDict& state) {
  nn::StateDict copy;
  for (const auto& [name, tensor] : state) copy.add(name, tensor.clone());
  return copy;
}

/// How many joined weights a run copies together; 0 where each is an alias of packed storage.
int count_copies(Executor& run, const Tensor& x) {
  const Tensor inputs[] = {x};
  int copies = 0;
  for (const InstructionInfo& info : run.program(inputs).instructions()) {
    copies += info.kernel.find("cat") != std::string::npos;
  }
  return copies;
}

// --- row 14 -------------------------------------------------------------------------------------

TEST(FeatureTable, Row14_TheFusedWeightIsTheConcatenation) {
  struct Projections : nn::Module {
    Projections()
        : q_proj(add<nn::Linear>("q_proj", kHidden, kHidden)),
          k_proj(add<nn::Linear>("k_proj", kHidden, kHidden)),
          v_proj(add<nn::Linear>("v_proj", kHidden, kHidden)) {}
    std::vector<Tensor> forward(const Tensor& x) const {
      const auto split = [](const Tensor& y) {
        return y.view({y.size(0), y.size(1), kHeads, -1}).permute({0, 2, 1, 3});
      };
      return {split(q_proj(x)), split(k_proj(x)), split(v_proj(x))};
    }
    nn::Child<nn::Linear> q_proj, k_proj, v_proj;
  };
  const auto model = initialized<Projections>();
  const auto fused = nn::make<tutorial::FusedQKV>(kHidden, kHeads);
  {
    const NoGradGuard no_grad;
    const auto joined = [&](const std::string& name) {
      return cat({model->parameter("q_proj." + name), model->parameter("k_proj." + name),
                  model->parameter("v_proj." + name)});
    };
    Tensor(fused->fused_linear->weight).copy_(joined("weight"));
    Tensor(fused->fused_linear->bias).copy_(joined("bias"));
  }
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {x});
  fuse_qkv(sch);
  const std::vector<Tensor> expected = fused.call(std::vector{x});
  const std::vector<Tensor> given = build(sch).run(std::vector{x});
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_values(given[i], expected[i])) << i;
}

TEST(FeatureTable, Row14_OldCheckpointsLoadIntoTheScheduledModelAndBack) {
  const test::TempFolder folder;
  const auto old = initialized<tutorial::Attention>(kHidden, kHeads);
  nn::save_checkpoint(folder / "old.json", {.tensors = old->state_dict()});

  const auto model = nn::make<tutorial::Attention>(kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {x});
  fuse_qkv(sch);
  Executor run = build(sch);
  nn::load_into(*model, nn::load_checkpoint(folder / "old.json"));  // after packing, in old names
  expect_same_state(model->state_dict(), old->state_dict());
  old->eval();
  test::expect_close(run(x), old(x), 2e-5, "the scheduled model reads what was loaded");
  EXPECT_EQ(count_copies(run, x), 0);

  nn::save_checkpoint(folder / "back.json", {.tensors = model->state_dict()});
  const auto plain = nn::make<tutorial::Attention>(kHidden, kHeads);
  nn::load_into(*plain, nn::load_checkpoint(folder / "back.json"));
  expect_same_state(plain->state_dict(), old->state_dict());
}

/// A GPT's ends: the head's weight is the embedding's, beside it two Linears of one input.
struct TiedModel : nn::Module {
  TiedModel()
      : tokens(add<nn::Embedding>("tokens", 11, kHidden)),
        a(add<nn::Linear>("a", kHidden, kHidden)),
        b(add<nn::Linear>("b", kHidden, kHidden)),
        head(register_module("head", nn::make<nn::Linear>(tokens->weight))) {}
  Tensor forward(const Tensor& x) const {
    const Tensor y = tokens(x);
    return head(tanh(a(y)) * b(y));
  }
  nn::Child<nn::Embedding> tokens;
  nn::Child<nn::Linear> a, b, head;
};

TEST(FeatureTable, Row14_TiedWeightsStayTied) {
  const auto model = initialized<TiedModel>();
  const Tensor x = from_vector<std::int64_t>({1, 4, 10, 0, 4, 7}, {2, 3});
  Schedule sch = create_schedule(model, {x});
  sch.fuse_parallel(sch.find([](const Tensor& y) { return call_module("[ab]", y); }));
  expect_equivalent(model, sch, {x});
  const auto tied = [&] {
    return model->parameter("tokens.weight").is_same(model->parameter("head.weight")) &&
           same_values(model->state_dict().at("tokens.weight"),
                       model->state_dict().at("head.weight"));
  };
  EXPECT_TRUE(tied());
  const Tensor before = model->parameter("tokens.weight").clone();
  auto step =
      build_training(sch, {.loss = [](auto outputs, auto) { return mean(square(outputs[0])); },
                           .optimizer = std::make_shared<nn::AdamW>(model->named_parameters())});
  step.run({x});
  EXPECT_TRUE(tied());
  EXPECT_FALSE(same_values(before, model->parameter("tokens.weight")));
}

TEST(FeatureTable, Row14_ATiedWeightIsNotJoinedWithOthers) {
  struct Model : nn::Module {
    Model()
        : a(add<nn::Linear>("a", kHidden, kHidden, false)),
          b(add<nn::Linear>("b", kHidden, kHidden, false)),
          again(register_module("again", nn::make<nn::Linear>(a->weight))) {}
    Tensor forward(const Tensor& x) const {
      const Tensor left = a(x);
      return again(left * b(x));
    }
    nn::Child<nn::Linear> a, b, again;
  };
  Schedule sch = create_schedule(nn::make<Model>(), {randn({3, kHidden})});
  expect_refused(sch,
                 "fuse_parallel refused: 'a.weight' and 'b.weight' cannot be joined: one is tied "
                 "to another place of the model, the other is not",
                 [&] { sch.fuse_parallel(sch.find("a|b")); });
}

/// Fused QKV in a layout of its own: the rows of the weight are ordered as `rows` says.
struct LayoutQKV : nn::Module {
  explicit LayoutQKV(std::vector<std::int64_t> rows_shape)
      : weight(register_parameter("weight", zeros({3 * kHidden, kHidden}))),
        bias(register_parameter("bias", zeros({3 * kHidden}))),
        rows(std::move(rows_shape)) {}
  std::vector<Tensor> forward(const Tensor& x) const {
    const auto three =
        static_cast<std::int64_t>(std::find(rows.begin(), rows.end(), 3) - rows.begin());
    const Tensor y =
        linear(x, weight, bias).view({x.size(0), x.size(1), rows[0], rows[1], rows[2]});
    std::vector<Tensor> results;
    for (std::int64_t i = 0; i < 3; ++i) {  // (bs, seq, head, d) -> (bs, head, seq, d)
      results.push_back(select(y, 2 + three, i).permute({0, 2, 1, 3}));
    }
    return results;
  }
  Tensor weight, bias;
  std::vector<std::int64_t> rows;
};

/// The map that makes such a weight of three: each as (h, 1, d, …) and so on, joined and flattened.
WeightMap qkv_layout(const std::vector<std::int64_t>& rows) {
  const auto three =
      static_cast<std::int64_t>(std::find(rows.begin(), rows.end(), 3) - rows.begin());
  const auto joined = [&](const std::string& name, std::vector<std::int64_t> tail_sizes) {
    std::vector<WeightSource> sources;
    for (const char* from : {"q_proj.", "k_proj.", "v_proj."}) {
      std::vector<std::int64_t> sizes = rows;
      sizes[static_cast<std::size_t>(three)] = 1;
      sizes.insert(sizes.end(), tail_sizes.begin(), tail_sizes.end());
      sources.push_back(reshape(from + name, sizes));
    }
    tail_sizes.insert(tail_sizes.begin(), 3 * kHidden);
    return reshape(cat(sources, three), tail_sizes);
  };
  return {{"weight", joined("weight", {kHidden})}, {"bias", joined("bias", {})}};
}

class FeatureTableLayouts : public ::testing::TestWithParam<std::vector<std::int64_t>> {};

TEST_P(FeatureTableLayouts, Row14_FusedLayoutsAreMappedFromThreeLinears) {
  const auto model = initialized<tutorial::Attention>(kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  const nn::StateDict before = copied(model->state_dict());
  Schedule sch = create_schedule(model, {x});
  sch.replace(nn::make<LayoutQKV>(GetParam()), sch.find(qkv_heads()),
              {.weights = qkv_layout(GetParam())});
  expect_equivalent(model, sch, {x});
  expect_same_state(model->state_dict(), before);
  Executor run = build(sch);
  // In (h, 3, d) the rows of one Linear lie in groups, which no strided (out, in) view describes.
  EXPECT_EQ(count_copies(run, x), GetParam()[1] == 3 ? 2 : 0);
  // The wrong layout has the right shapes; the map is what tells them apart.
  if (GetParam().front() == 3) return;
  const auto wrong_model = initialized<tutorial::Attention>(kHidden, kHeads);
  Schedule wrong = create_schedule(wrong_model, {x});
  wrong.replace(nn::make<LayoutQKV>(GetParam()), wrong.find(qkv_heads()),
                {.weights = qkv_layout({3, kHeads, kDepth})});
  EXPECT_FALSE(verify(wrong).ok());
}

INSTANTIATE_TEST_SUITE_P(All, FeatureTableLayouts,
                         ::testing::Values(std::vector<std::int64_t>{3, kHeads, kDepth},   // GPT-2
                                           std::vector<std::int64_t>{kHeads, 3, kDepth},   // BLOOM
                                           std::vector<std::int64_t>{kHeads, kDepth, 3}),  // Slapo
                         [](const auto& one) {
                           std::string name;
                           for (std::int64_t size : one.param) {
                             name += size == 3                                               ? "3"
                                     : size == kHeads && name.find('h') == std::string::npos ? "h"
                                                                                             : "d";
                           }
                           return name;
                         });

TEST(FeatureTable, Row14_OneFusedWeightIsReplacedByThreeLinears) {
  struct Fused : nn::Module {
    Fused() : qkv(add<nn::Linear>("qkv", kHidden, 3 * kHidden)) {}
    Tensor forward(const Tensor& x) const { return tanh(qkv(x)); }
    nn::Child<nn::Linear> qkv;
  };
  struct Three : nn::Module {
    Three()
        : q(add<nn::Linear>("q", kHidden, kHidden)),
          k(add<nn::Linear>("k", kHidden, kHidden)),
          v(add<nn::Linear>("v", kHidden, kHidden)) {}
    Tensor forward(const Tensor& x) const { return cat({q(x), k(x), v(x)}, -1); }
    nn::Child<nn::Linear> q, k, v;
  };
  const auto model = initialized<Fused>();
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {x});
  WeightMap map;
  for (const auto& [part, index] : {std::pair{"q", 0}, {"k", 1}, {"v", 2}}) {
    map.emplace(std::string(part) + ".weight", split("qkv.weight", 3, index));
    map.emplace(std::string(part) + ".bias", narrow("bias", 0, index * kHidden, kHidden));
  }
  sch["qkv"].replace(nn::make<Three>(), {.weights = map});
  expect_equivalent(model, sch, {x});
  EXPECT_EQ(model->state_dict().size(), 2U);
  // A step moves the one parameter that there is.
  const Tensor before = model->parameter("qkv.weight").clone();
  auto step =
      build_training(sch, {.loss = [](auto outputs, auto) { return mean(square(outputs[0])); },
                           .optimizer = std::make_shared<nn::AdamW>(model->named_parameters())});
  step.run({x});
  for (std::int64_t part = 0; part < 3; ++part) {
    const auto piece = [&](const Tensor& w) {
      return w.detach().narrow(0, part * kHidden, kHidden);
    };
    EXPECT_FALSE(same_values(piece(before), piece(model->parameter("qkv.weight")))) << part;
  }
}

TEST(FeatureTable, Row14_ATransposedWeight) {
  // GPT-2's Conv1D keeps its weight (in, out).
  struct Conv1d : nn::Module {
    Conv1d(std::int64_t in, std::int64_t out)
        : weight(register_parameter("weight", zeros({in, out}))),
          bias(register_parameter("bias", zeros({out}))) {}
    Tensor forward(const Tensor& x) const { return matmul(x, weight) + bias; }
    Tensor weight, bias;
  };
  const auto model = initialized<test::ResidualMlp>(kHidden);
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  sch["up"].replace(nn::make<Conv1d>(kHidden, 4 * kHidden),
                    {.weights = {{"weight", transpose("weight", 0, 1)}}});
  expect_equivalent(model, sch, {x});
}

/// `count` updates on batches that depend on their number alone.
void run_steps(TrainingStep& step, int first, int count) {
  for (int i = first; i < first + count; ++i) {
    Generator generator(test::kSeed + static_cast<std::uint64_t>(i));
    const Tensor x = randn({2, 5, kHidden}, {}, &generator);
    const Tensor y = randn({2, 5, kHidden}, {}, &generator);
    step.run({x, y});
  }
}

TEST(FeatureTable, Row14_OptimizerStateMovesBetweenScheduledAndPlain) {
  const test::TempFolder folder;
  const auto training = [](const nn::Child<tutorial::Attention>& model,
                           const std::shared_ptr<nn::AdamW>& optimizer, bool fused) {
    Schedule sch = create_schedule(model, {randn({2, 5, kHidden})});
    if (fused) fuse_qkv(sch);
    return build_training(sch, {.loss = test::distance,
                                .targets = {{"target", randn({2, 5, kHidden})}},
                                .optimizer = optimizer,
                                .verify = false});
  };
  const auto adamw = [](nn::Module& model) {
    return std::make_shared<nn::AdamW>(model.named_parameters(), nn::AdamWOptions{.lr = 1e-2});
  };
  const auto scheduled = initialized<tutorial::Attention>(kHidden, kHeads);
  const auto scheduled_optimizer = adamw(*scheduled);
  auto scheduled_step = training(scheduled, scheduled_optimizer, true);
  manual_seed(test::kSeed);
  run_steps(scheduled_step, 0, 3);
  nn::save_checkpoint(folder / "model.json", {.tensors = scheduled->state_dict()});
  nn::save_checkpoint(folder / "optimizer.json", {.tensors = scheduled_optimizer->state_dict()});

  const auto plain = nn::make<tutorial::Attention>(kHidden, kHeads);
  const auto plain_optimizer = adamw(*plain);
  nn::load_into(*plain, nn::load_checkpoint(folder / "model.json"));
  plain_optimizer->load_state_dict(nn::load_checkpoint(folder / "optimizer.json").state_dict());
  expect_same_state(plain->state_dict(), scheduled->state_dict());
  expect_same_state(plain_optimizer->state_dict(), scheduled_optimizer->state_dict());
  EXPECT_TRUE(plain_optimizer->state_dict().contains("exp_avg.self_attn.k_proj.weight"));

  // And back, into a scheduled training that then goes on bit for bit as the first one.
  nn::save_checkpoint(folder / "again.json", {.tensors = plain->state_dict()});
  nn::save_checkpoint(folder / "optimizer_again.json", {.tensors = plain_optimizer->state_dict()});
  const auto resumed = nn::make<tutorial::Attention>(kHidden, kHeads);
  const auto resumed_optimizer = adamw(*resumed);
  auto resumed_step = training(resumed, resumed_optimizer, true);
  nn::load_into(*resumed, nn::load_checkpoint(folder / "again.json"));
  resumed_optimizer->load_state_dict(
      nn::load_checkpoint(folder / "optimizer_again.json").state_dict());
  for (auto* step : {&scheduled_step, &resumed_step}) {
    manual_seed(test::kSeed + 1);
    run_steps(*step, 3, 2);
  }
  expect_same_state(resumed->state_dict(), scheduled->state_dict());
  expect_same_state(resumed_optimizer->state_dict(), scheduled_optimizer->state_dict());
}

TEST(FeatureTable, Row14_FrozenParametersStayFrozenThroughAMap) {
  const auto model = initialized<tutorial::Attention>(kHidden, kHeads);
  for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
    model->submodule(std::string("self_attn.") + name).requires_grad_(false);
  }
  const nn::StateDict before = copied(model->state_dict());
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {x});
  fuse_qkv(sch);
  expect_equivalent(model, sch, {x});  // the eager model has no gradient of them either
  EXPECT_FALSE(model->parameter("self_attn.k_proj.weight").requires_grad());
  nn::Module::NamedTensors trained;
  for (const auto& entry : model->named_parameters()) {
    if (entry.second.requires_grad()) trained.push_back(entry);
  }
  auto step = build_training(
      sch, {.loss = [](auto outputs, auto) { return mean(square(outputs[0] - 1.0)); },
            .optimizer = std::make_shared<nn::AdamW>(trained)});
  step.run({x});
  for (const auto& [name, tensor] : model->state_dict()) {
    EXPECT_EQ(same_values(tensor.contiguous(), before.at(name)),
              name.find("self_attn") != std::string::npos)
        << name;
  }
}

/// A Linear with a low-rank term (Hu et al., 2021, "LoRA"); b starts at zero.
struct LoraLinear : nn::Module {
  explicit LoraLinear(const nn::Linear& old)
      : weight(register_parameter("weight", zeros(old.weight.shape()))),
        bias(register_parameter("bias", zeros(old.bias.shape()))),
        a(register_parameter("a", randn({2, old.in_features}))),
        b(register_parameter("b", zeros({old.out_features, 2}))) {}
  Tensor forward(const Tensor& x) const {
    return linear(x, weight, bias) + linear(linear(x, a), b);
  }
  Tensor weight, bias, a, b;
};

TEST(FeatureTable, Row14_FreshParametersVerifyAndTrain) {
  const auto model = initialized<test::ResidualMlp>(kHidden);
  model->requires_grad_(false);
  const nn::StateDict before = copied(model->state_dict());
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  expect_refused(sch, "parameter 'a' of LoraLinear has no source",
                 [&] { sch["up"].replace(nn::make<LoraLinear>(*model->up)); });
  sch["up"].replace(nn::make<LoraLinear>(*model->up),
                    {.weights = {{"a", fresh()}, {"b", fresh()}}});
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  const nn::Module::NamedTensors added = sch.added_parameters();
  ASSERT_EQ(added.size(), 2U);

  std::vector<Tensor> initial;
  for (const auto& [name, tensor] : added) initial.push_back(tensor.clone());
  auto step = build_training(sch, {.loss = test::distance,
                                   .targets = {{"target", x}},
                                   .optimizer = std::make_shared<nn::AdamW>(
                                       added, nn::AdamWOptions{.lr = 1e-2, .weight_decay = 0})});
  const double first = step.run({x, x}).loss.item();
  double last = first;
  for (int i = 0; i < 60; ++i) {
    manual_seed(test::kSeed);
    last = step.run({x, x}).loss.item();
  }
  EXPECT_LT(last, first);
  for (std::size_t i = 0; i < added.size(); ++i) {
    EXPECT_FALSE(same_values(initial[i], added[i].second)) << added[i].first;
  }
  expect_same_state(model->state_dict(), before);  // what is frozen stays, under the old names
}

TEST(FeatureTable, Row14_EveryReplacedModuleHasFreshParametersOfItsOwn) {
  const auto model = initialized<test::Stack<test::ResidualMlp>>(2, kHidden);
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  sch.replace_all<nn::Linear>(
      [](const std::string&, nn::Linear& old) { return nn::make<LoraLinear>(old); },
      {.weights = {{"a", fresh()}, {"b", fresh()}}});
  const nn::Module::NamedTensors added = sch.added_parameters();
  std::vector<std::string> names;
  for (const auto& [name, tensor] : added) names.push_back(name);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"layer.0.LoraLinear_0.a", "layer.0.LoraLinear_0.b",
                                             "layer.0.LoraLinear_1.a", "layer.0.LoraLinear_1.b",
                                             "layer.1.LoraLinear_0.a", "layer.1.LoraLinear_0.b",
                                             "layer.1.LoraLinear_1.a", "layer.1.LoraLinear_1.b"}));
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  auto step = build_training(sch, {.loss = test::distance,
                                   .targets = {{"target", x}},
                                   .optimizer = std::make_shared<nn::AdamW>(added)});
  std::vector<Tensor> before;
  for (const auto& [name, tensor] : added) before.push_back(tensor.clone());
  step.run({x, x});
  step.run({x, x});  // a moves once b is no longer zero
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_FALSE(same_values(before[i], added[i].second)) << added[i].first;
  }
}

TEST(FeatureTable, Row14_AWeightThatTwoMatchesShareIsNotJoinedTwice) {
  struct Model : nn::Module {
    Model() : shared(add<nn::Linear>("shared", kHidden, kHidden)) {}
    Tensor forward(const Tensor& x) const { return shared(x) * tanh(shared(x)); }
    nn::Child<nn::Linear> shared;
  };
  Schedule sch = create_schedule(nn::make<Model>(), {randn({3, kHidden})});
  expect_refused(
      sch, "the joined weight would hold 'shared.weight' twice: the matches share that weight",
      [&] { sch.fuse_parallel(sch.find("shared")); });
}

}  // namespace feature_table_weights_test
}  // namespace tenon
