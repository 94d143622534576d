// The primitives: structure, numbers, weights, and refusals that leave the Graph byte-equal.
#include <gtest/gtest.h>

#include "examples/attention_model.h"
#include "schedule/schedule.h"
#include "schedule/verification.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace primitives_test {

using test::expect_refused;
using test::function_model;
using test::max_difference;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 2;

Tensor tail(const Tensor& x, const Tensor& bias, const Tensor& residual, const Tensor& weight,
            const Tensor& norm_bias) {
  return layer_norm(dropout(x + bias, 0.1) + residual, weight, norm_bias);
}

const ReplaceOptions kFlashArguments = {
    .concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}};

/// The tutorial's whole schedule, on a model of any path.
void schedule_attention(Schedule sch, std::int64_t hidden, std::int64_t heads) {
  sch.replace(nn::make<tutorial::FusedQKV>(hidden, heads), sch.find(test::qkv_pattern(kHeads)));
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              kFlashArguments);
  Schedule proj = sch["proj"];
  proj["dense"].decompose();
  proj.trace({.flatten = true});
  proj.fuse(proj.find(tail), {.name = "FusedLayerNorm"});
}

struct Fixture : ::testing::Test {
  nn::Child<tutorial::Attention> model = nn::make<tutorial::Attention>(kHidden, kHeads);
  Schedule sch = create_schedule(model, {{"hidden_states", randn({2, 5, kHidden})}});
};
using Primitives = Fixture;

TEST_F(Primitives, WholeTutorialEqualsTheModelAtEverySize) {
  schedule_attention(sch, kHidden, kHeads);
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  Executor run = build(sch);
  model->eval();
  for (const auto& [batch, seq] : {std::pair{1, 128}, {8, 512}, {3, 77}, {1, 1}}) {
    const Tensor x = randn({batch, seq, kHidden});
    EXPECT_LT(max_difference(run(x), model(x)), 2e-5) << batch << " x " << seq;
  }
  const Tensor x = randn({2, 5, kHidden});
  const Tensor inputs[] = {x};
  EXPECT_EQ(run.program(inputs).count_kernels(inputs), 4);
}

TEST_F(Primitives, WholeTutorialDropsTheSameElementsInTraining) {
  schedule_attention(sch, kHidden, kHeads);
  Executor run = build(sch);
  Executor plain(sch.original());
  const Tensor inputs[] = {randn({3, 7, kHidden})};
  manual_seed(11);
  const Tensor a = run.run(inputs, true).at(0);
  manual_seed(11);
  const Tensor b = plain.run(inputs, true).at(0);
  EXPECT_LT(max_difference(a, b), 2e-5);
  EXPECT_GT(max_difference(a, run(inputs[0])), 1e-2);
}

TEST_F(Primitives, TreeShowsWhatChanged) {
  schedule_attention(sch, kHidden, kHeads);
  EXPECT_EQ(sch.to_string(),
            R"(Attention(
  (self_attn): SelfAttention(
    (dropout): Dropout(p=0.1, inplace=False)
    (FusedQKV_0): FusedQKV(
      (fused_linear): Linear(in_features=16, out_features=48, bias=True)
    )
    (FlashAttention_0): FlashAttention()
  )
  (proj): Projection(
    (dense): DecomposedLinear(in_features=16, out_features=16, bias=True)
    (FusedLayerNorm_0): bias_dropout_residual_layer_norm(p=0.1, eps=1e-05, mode=follow, site=1)
  )
))");
}

TEST_F(Primitives, LeafModulesStayClosedWhenFlattening) {
  sch.trace({.flatten = true, .leaf_modules = {"SelfAttention"}});
  EXPECT_EQ(sch.find(tutorial::scaled_dot_product).to_string().find("[[('self_attn', transpose)"),
            0U);
  expect_refused(sch, "leaf_modules: no module below '' is called 'Nothing'",
                 [&] { sch.trace({.flatten = true, .leaf_modules = {"Nothing"}}); });
}

TEST_F(Primitives, AClosedLeafCanBeFlattenedItself) {
  sch.trace({.flatten = true, .leaf_modules = {"Projection"}});
  sch["proj"]["dense"].decompose();
  EXPECT_TRUE(sch.find(tail).empty());
  sch["proj"].trace({.flatten = true});
  EXPECT_EQ(sch.find(tail).to_string(),
            "[[('proj', add), ('proj', dropout), ('proj', add_1), ('proj', layer_norm)]]");
}

TEST(PrimitivesOnStacks, EveryLayerAtOnce) {
  const auto model = nn::make<test::Stack<tutorial::Attention>>(3, kHidden, kHeads);
  Schedule sch = create_schedule(model, {randn({2, 5, kHidden})});
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              kFlashArguments);
  for (int i = 0; i < 3; ++i) {
    Schedule proj = sch["layer." + std::to_string(i) + ".proj"];
    proj["dense"].decompose();
    proj.trace({.flatten = true});
  }
  sch.fuse(sch.find(tail));
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  Executor run = build(sch);
  const Tensor inputs[] = {randn({2, 9, kHidden})};
  EXPECT_EQ(run.program(inputs).count_kernels(inputs), 12);
}

TEST(PrimitivesOnOtherModels, ResidualMlpTail) {
  const auto model = nn::make<test::ResidualMlp>(kHidden);
  Schedule sch = create_schedule(model, {randn({2, 5, kHidden})});
  sch["down"].decompose();
  sch.trace({.flatten = true});
  sch.fuse(sch.find([](const Tensor& x, const Tensor& b, const Tensor& r, const Tensor& w,
                       const Tensor& nb) { return layer_norm(dropout(x + b, any()) + r, w, nb); }));
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  EXPECT_NE(to_text(sch.graph()).find("p=0.2"), std::string::npos);
}

TEST(PrimitivesOnOtherModels, MatchesThatFeedEachOther) {
  const auto model = function_model([](const Tensor& x) { return relu(exp(relu(exp(x) + x))); });
  Schedule sch = create_schedule(model, {randn({3})});
  const Matches matches = sch.find([](const Tensor& x) { return exp(x); });
  ASSERT_EQ(matches.size(), 2U);
  sch.replace([](const Tensor& x) { return exp(x * 0.5) * exp(x * 0.5); }, matches);
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
}

TEST_F(Primitives, ExplicitWeightMap) {
  struct Renamed : nn::Module {
    Renamed()
        : w(register_parameter("w", zeros({3 * kHidden, kHidden}))),
          b(register_parameter("b", zeros({3 * kHidden}))) {}
    std::vector<Tensor> forward(const Tensor& x) const {
      std::vector<Tensor> qkv;
      for (const Tensor& y : chunk(linear(x, w, b), 3, -1)) {
        qkv.push_back(y.view({y.size(0), y.size(1), kHeads, -1}).permute({0, 2, 1, 3}));
      }
      return qkv;
    }
    Tensor w, b;
  };
  const Matches qkv = sch.find(test::qkv_pattern(kHeads));
  expect_refused(sch, "parameter 'w' of Renamed has no source",
                 [&] { sch.replace(nn::make<Renamed>(), qkv); });
  expect_refused(
      sch,
      "weights: the replaced nodes read no parameter 'x_proj.weight' (a source of 'w' of "
      "Renamed), and the model has none of that whole name; they read "
      "self_attn.q_proj.weight, self_attn.q_proj.bias,",
      [&] {
        sch.replace(nn::make<Renamed>(), qkv, {.weights = {{"w", "x_proj.weight"}}});
      });
  expect_refused(sch, "weights: Renamed has no parameter 'u'", [&] {
    sch.replace(nn::make<Renamed>(), qkv, {.weights = {{"u", "q_proj.weight"}}});
  });
  expect_refused(
      sch, "parameter 'w' of Renamed is float32(48, 16); its sources make float32(32, 16)", [&] {
        sch.replace(nn::make<Renamed>(), qkv,
                    {.weights = {{"w", cat("q_proj.weight", "k_proj.weight")}}});
      });
  sch.replace(nn::make<Renamed>(), qkv,
              {.weights = {{"w", cat("q_proj.weight", "k_proj.weight", "v_proj.weight")},
                           {"b", cat("q_proj.bias", "k_proj.bias", "v_proj.bias")}}});
  EXPECT_TRUE(verify(sch).ok());
}

TEST_F(Primitives, WrongReplacementsAreRefusedOrCaughtByVerification) {
  // Swapped k and v: well-formed, same shapes; only the numbers tell.
  struct Swapped : tutorial::FusedQKV {
    Swapped() : FusedQKV(kHidden, kHeads) {}
    std::vector<Tensor> forward(const Tensor& x) const {
      auto qkv = FusedQKV::forward(x);
      std::swap(qkv[1], qkv[2]);
      return qkv;
    }
  };
  sch.replace(nn::make<Swapped>(), sch.find(test::qkv_pattern(kHeads)));
  EXPECT_FALSE(verify(sch).ok());
  const auto before = model->parameter("self_attn.q_proj.weight").storage();
  EXPECT_THROW(build(sch), VerificationError);
  EXPECT_EQ(model->parameter("self_attn.q_proj.weight").storage(), before);
}

TEST_F(Primitives, ForgottenScaleIsCaught) {
  sch.replace(
      [](const Tensor& q, const Tensor& k, const Tensor& v) {
        return scaled_dot_product_attention(q, k, v, {}, {.dropout_p = 0.1, .scale = 1.0});
      },
      sch.find(tutorial::scaled_dot_product));
  EXPECT_FALSE(verify(sch).ok());
}

TEST_F(Primitives, Refusals) {
  const Matches qkv = sch.find(test::qkv_pattern(kHeads));
  const Matches core = sch.find(tutorial::scaled_dot_product);
  expect_refused(sch, "the match is empty: near miss at", [&] {
    sch.replace(
        nn::make<tutorial::FlashAttention>(),
        sch.find([](const Tensor& q, const Tensor& k) { return softmax(matmul(q, k), -1); }),
        kFlashArguments);
  });
  struct TwoOutputs : tutorial::FusedQKV {
    TwoOutputs() : FusedQKV(kHidden, kHeads) {}
    std::vector<Tensor> forward(const Tensor& x) const {
      auto qkv = FusedQKV::forward(x);
      qkv.pop_back();
      return qkv;
    }
  };
  expect_refused(sch, "TwoOutputs returns 2 tensors; needed 1 (each match on its own) or 3",
                 [&] { sch.replace(nn::make<TwoOutputs>(), qkv); });
  expect_refused(sch,
                 "function returns float32(s0, 2, 8, s1) in place of %self_attn.matmul_1; "
                 "needed float32(s0, 2, s1, 8)",
                 [&] {
                   sch.replace(
                       [](const Tensor& q, const Tensor& k, const Tensor& v) {
                         return (dropout(q, 0.1) + k + v).transpose(-2, -1);
                       },
                       core);
                 });
  expect_refused(sch, "FusedQKV takes 1 tensors; the pattern has 3 parameters",
                 [&] { sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), core); });
  expect_refused(sch, "drop at 1 place in training, function at 0", [&] {
    sch.replace([](const Tensor& q, const Tensor& k,
                   const Tensor& v) { return scaled_dot_product_attention(q, k, v); },
                core);
  });
  expect_refused(sch, "the rewrite holds for some sizes only: it needs s1 == 5", [&] {
    sch.replace(
        [](const Tensor& q, const Tensor& k, const Tensor& v) {
          return scaled_dot_product_attention(q, k, v, {}, {.dropout_p = 0.1}) + zeros({5, 8});
        },
        core);
  });
  expect_refused(sch, "no fused op is registered for the composition of", [&] {
    sch.fuse(sch.find(
        [](const Tensor& x, const Tensor& v) { return matmul(dropout(softmax(x, -1), 0.1), v); }));
  });
  expect_refused(sch, "has nothing to decompose", [&] { sch["proj.layer_norm"].decompose(); });
  expect_refused(sch, "FlashAttention needs a value for its parameter 'p'", [&] {
    sch.replace(nn::make<tutorial::FlashAttention>(), core,
                {.concrete_args = {{"attention_mask", std::monostate{}}}});
  });
  EXPECT_THROW(
      sch.replace(nn::make<tutorial::FlashAttention>(), core, {.concrete_args = {{"q", 1.0}}}),
      ScheduleError);
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), qkv);
  expect_refused(sch, "the match is out of date",
                 [&] { sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), qkv); });
}

TEST_F(Primitives, FrozenHookedAndSharedWeightsAreRefused) {
  const auto fused = [] { return nn::make<tutorial::FusedQKV>(kHidden, kHeads); };
  const auto fresh_schedule = [](const auto& m) {
    return create_schedule(m, {{"hidden_states", randn({2, 5, kHidden})}});
  };
  model->submodule("self_attn.k_proj").requires_grad_(false);
  expect_refused(sch, "one is frozen, the other is not",
                 [&] { sch.replace(fused(), sch.find(test::qkv_pattern(kHeads))); });

  const auto hooked = nn::make<tutorial::Attention>(kHidden, kHeads);
  hooked->submodule("self_attn.k_proj")
      .register_forward_hook([](nn::Module&, std::span<const Tensor>, std::span<Tensor>) {});
  Schedule with_hook = fresh_schedule(hooked);
  EXPECT_EQ(with_hook.find(test::qkv_pattern(kHeads)).size(), 2U);
  EXPECT_NE(
      with_hook.find(test::qkv_pattern(kHeads)).explain().find("'self_attn.k_proj' has a hook"),
      std::string::npos);
}

TEST_F(Primitives, SecondPackingIsRefused) {
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
  build(sch);
  struct FusedQK : nn::Module {
    FusedQK() : fused(add<nn::Linear>("fused", kHidden, 2 * kHidden)) {}
    std::vector<Tensor> forward(const Tensor& x) const { return chunk(fused(x), 2, -1); }
    nn::Child<nn::Linear> fused;
  };
  Schedule other = create_schedule(model, {{"hidden_states", randn({2, 5, kHidden})}});
  other.replace(nn::make<FusedQK>(),
                other.find([](const Tensor& x) { return call_module("[kv]_proj", x); }));
  // k and v lie next to each other in the first packing: that is compatible.
  EXPECT_NO_THROW(build(other));
  Schedule third = create_schedule(model, {{"hidden_states", randn({2, 5, kHidden})}});
  struct FusedQV : FusedQK {};
  third.replace(nn::make<FusedQV>(),
                third.find([](const Tensor& x) { return call_module("[qv]_proj", x); }));
  EXPECT_ERROR(
      ScheduleError,
      "parameter 'self_attn.q_proj.bias' is part of another packing already; a model has one "
      "packing of its parameters at a time",
      build(third));
}

TEST(PrimitiveConstants, AReplacementMayMakeConstantsBesideTheModels) {
  const auto cut = [](const Tensor& x, double at) { return maximum(x, full({}, at)); };
  const auto model = test::function_model([cut](const Tensor& x) { return cut(relu(x), 0.5); });
  Schedule kept = create_schedule(model, {randn({2, 3})});
  kept.replace([cut](const Tensor& x) { return cut(x, 0.0) * 1.0; },
               kept.find([](const Tensor& x) { return relu(x); }));
  EXPECT_EQ(kept.applied().size(), 1U);
  Schedule gone = create_schedule(model, {randn({2, 3})});
  gone.replace([cut](const Tensor& x, const Tensor&) { return cut(relu(x), 0.5); },
               gone.find([](const Tensor& x, const Tensor& at) { return maximum(relu(x), at); }));
  EXPECT_TRUE(verify(gone).ok());
}

TEST_F(Primitives, AppliedPrimitivesAreRecorded) {
  schedule_attention(sch, kHidden, kHeads);
  std::vector<std::string> names;
  for (const AppliedPrimitive& p : sch.applied()) names.push_back(p.primitive + ":" + p.path);
  EXPECT_EQ(names, (std::vector<std::string>{"replace:", "replace:", "decompose:proj.dense",
                                             "trace:proj", "fuse:proj"}));
}

}  // namespace primitives_test
}  // namespace tenon
