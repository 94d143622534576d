// A schedule as it prints: the tree with what changed, and what was applied to what.
#include "schedule/tree.h"

#include <gtest/gtest.h>

#include <sstream>

#include "examples/attention_model.h"
#include "schedule/schedule_json.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 2;

std::string printed(const Schedule& sch) {
  std::ostringstream stream;
  stream << sch;
  return stream.str();
}

Schedule schedule_of_attention() {
  const auto model = nn::make<tutorial::Attention>(kHidden, kHeads);
  return create_schedule(model, {{"hidden_states", randn({2, 5, kHidden})}});
}

void schedule_tail(Schedule proj) {
  proj["dense"].decompose();
  proj.trace({.flatten = true});
  proj.fuse(proj.find([](const Tensor& x, const Tensor& bias, const Tensor& residual,
                         const Tensor& weight, const Tensor& norm_bias) {
    return layer_norm(dropout(x + bias, 0.1) + residual, weight, norm_bias);
  }),
            {.name = "FusedLayerNorm"});
}

void apply_tutorial(Schedule sch) {
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
  schedule_tail(sch["proj"]);
}

/// Stands for an activation.
struct FastGELU : nn::Module {
  Tensor forward(const Tensor& x) const { return gelu(x) * 1.0; }
};

/// One module that is called twice.
struct Twice : nn::Module {
  Twice() : act(add<nn::GELU>("act")) {}
  Tensor forward(const Tensor& x) const { return act(act(x) + x); }
  nn::Child<nn::GELU> act;
};

/// linear, gelu, linear, gelu: matches that follow each other directly.
struct Chain : nn::Module {
  Chain()
      : a(add<nn::Linear>("a", 4, 4)),
        act_a(add<nn::GELU>("act_a")),
        b(add<nn::Linear>("b", 4, 4)),
        act_b(add<nn::GELU>("act_b")) {}
  Tensor forward(const Tensor& x) const { return act_b(b(act_a(a(x)))); }
  nn::Child<nn::Linear> a;
  nn::Child<nn::GELU> act_a;
  nn::Child<nn::Linear> b;
  nn::Child<nn::GELU> act_b;
};
struct LinearGELU : nn::Module {
  LinearGELU() : fc(add<nn::Linear>("fc", 4, 4)) {}
  Tensor forward(const Tensor& x) const { return gelu(fc(x)); }
  nn::Child<nn::Linear> fc;
};

TEST(Tree, AFreshSchedulePrintsAsItsModel) {
  const Schedule sch = schedule_of_attention();
  EXPECT_EQ(printed(sch), sch.model().to_string());
}

TEST(Tree, TheTutorial) {
  Schedule sch = schedule_of_attention();
  apply_tutorial(sch);
  EXPECT_EQ(printed(sch), R"tree(  Attention(
~   (self_attn): SelfAttention(                                                 # view, permute, view_1, … (6 nodes) replaced by FusedQKV_0; transpose, matmul, div, … (6 nodes) replaced by FlashAttention_0
-     (q_proj): Linear(in_features=16, out_features=16, bias=True)              # replaced by FusedQKV_0
-     (k_proj): Linear(in_features=16, out_features=16, bias=True)              # replaced by FusedQKV_0
-     (v_proj): Linear(in_features=16, out_features=16, bias=True)              # replaced by FusedQKV_0
      (dropout): Dropout(p=0.1, inplace=False)
+     (FusedQKV_0): FusedQKV(                                                   # by replace
+       (fused_linear): Linear(in_features=16, out_features=48, bias=True)
+     )
+     (FlashAttention_0): FlashAttention()                                      # by replace
    )
~   (proj): Projection(                                                         # flattened; add replaced by FusedLayerNorm_0
~     (dense): DecomposedLinear(in_features=16, out_features=16, bias=True)     # decomposed
-     (dropout): Dropout(p=0.1, inplace=False)                                  # replaced by FusedLayerNorm_0
-     (layer_norm): LayerNorm((16,), eps=1e-05, elementwise_affine=True)        # replaced by FusedLayerNorm_0
+     (FusedLayerNorm_0): bias_dropout_residual_layer_norm(p=0.1, eps=1e-05, mode=follow)  # by fuse
    )
  )

1. replace: [[('self_attn', q_proj), ('self_attn', view), ('self_attn', permute)], … 3 in all] by FusedQKV
2. replace: [[('self_attn', transpose), ('self_attn', matmul), ('self_attn', div), … 6 in all]] by FlashAttention
3. decompose on 'proj.dense'
4. trace on 'proj': flatten
5. fuse on 'proj': [[('', add), ('', dropout), ('', add_1), ('', layer_norm)]] as FusedLayerNorm)tree");
}

TEST(Tree, OfASubmodule) {
  Schedule sch = schedule_of_attention();
  apply_tutorial(sch);
  EXPECT_EQ(
      changed_tree(sch["proj"]),
      R"tree(~ Projection(                                                                   # flattened; add replaced by FusedLayerNorm_0
~   (dense): DecomposedLinear(in_features=16, out_features=16, bias=True)       # decomposed
-   (dropout): Dropout(p=0.1, inplace=False)                                    # replaced by FusedLayerNorm_0
-   (layer_norm): LayerNorm((16,), eps=1e-05, elementwise_affine=True)          # replaced by FusedLayerNorm_0
+   (FusedLayerNorm_0): bias_dropout_residual_layer_norm(p=0.1, eps=1e-05, mode=follow)  # by fuse
  ))tree");
  EXPECT_EQ(changed_tree(sch["self_attn.FusedQKV_0"]), R"tree(+ FusedQKV(  # by replace
+   (fused_linear): Linear(in_features=16, out_features=48, bias=True)
+ ))tree");
}

TEST(Tree, AWholeModuleThatIsReplacedStandsBesideItsReplacement) {
  const auto model = nn::make<Twice>();
  Schedule sch = create_schedule(model, {randn({2, 4})});
  sch["act"].replace(nn::make<FastGELU>());
  EXPECT_EQ(changed_tree(sch), R"tree(  Twice(
-   (act): GELU(approximate='none')  # replaced by FastGELU
+   (act): FastGELU()                # by replace
  ))tree");
  EXPECT_EQ(sch.to_string(), R"tree(Twice(
  (act): FastGELU()
))tree");
}

TEST(Tree, EachMatchOfAChainHasItsOwnReplacement) {
  Schedule sch = create_schedule(nn::make<Chain>(), {randn({2, 4})});
  sch.replace(nn::make<LinearGELU>(),
              sch.find([](const Tensor& x) { return gelu(call_module("[ab]", x)); }));
  EXPECT_EQ(changed_tree(sch), R"tree(  Chain(
-   (a): Linear(in_features=4, out_features=4, bias=True)  # replaced by LinearGELU_0
-   (act_a): GELU(approximate='none')                      # replaced by LinearGELU_0
-   (b): Linear(in_features=4, out_features=4, bias=True)  # replaced by LinearGELU_1
-   (act_b): GELU(approximate='none')                      # replaced by LinearGELU_1
+   (LinearGELU_0-1): 2 x LinearGELU(                      # by replace
+     (fc): Linear(in_features=4, out_features=4, bias=True)
+   )
  ))tree");
}

TEST(Tree, EqualLayersAreFolded) {
  const auto model = nn::make<test::Stack<test::ResidualMlp>>(24, 8);
  Schedule sch = create_schedule(model, {randn({2, 8})});
  EXPECT_EQ(
      sch.replace_all<nn::GELU>([](const std::string&, nn::GELU&) { return nn::make<FastGELU>(); }),
      24U);
  for (int i = 0; i < 24; ++i) sch["layer"][std::to_string(i)].checkpoint();
  EXPECT_EQ(changed_tree(sch),
            R"tree(~ Stack(                                 # recomputed in backward
    (layer): ModuleList(
      (0-23): 24 x ResidualMlp(
        (up): Linear(in_features=8, out_features=32, bias=True)
-       (act): GELU(approximate='none')  # replaced by FastGELU
+       (act): FastGELU()                # by replace_all
        (down): Linear(in_features=32, out_features=8, bias=True)
        (drop): Dropout(p=0.2, inplace=False)
        (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)
      )
    )
  ))tree");
  sch.annotate("layer.23", "placement", "last");
  EXPECT_EQ(changed_tree(sch),
            R"tree(~ Stack(                                 # recomputed in backward
    (layer): ModuleList(
      (0-22): 23 x ResidualMlp(
        (up): Linear(in_features=8, out_features=32, bias=True)
-       (act): GELU(approximate='none')  # replaced by FastGELU
+       (act): FastGELU()                # by replace_all
        (down): Linear(in_features=32, out_features=8, bias=True)
        (drop): Dropout(p=0.2, inplace=False)
        (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)
      )
~     (23): ResidualMlp(                 # placement = last
        (up): Linear(in_features=8, out_features=32, bias=True)
-       (act): GELU(approximate='none')  # replaced by FastGELU
+       (act): FastGELU()                # by replace_all
        (down): Linear(in_features=32, out_features=8, bias=True)
        (drop): Dropout(p=0.2, inplace=False)
        (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)
      )
    )
  ))tree");
}

TEST(Tree, NamesThatAreNumberedOnFoldToo) {
  const auto model = nn::make<test::Stack<test::ResidualMlp>>(3, 8);
  Schedule sch = create_schedule(model, {randn({2, 8})});
  for (int i = 0; i < 3; ++i) sch["layer." + std::to_string(i) + ".down"].decompose();
  sch.trace({.flatten = true});
  sch.fuse(sch.find(
      [](const Tensor& x, const Tensor& bias, const Tensor& residual, const Tensor& w,
         const Tensor& b) { return layer_norm(dropout(x + bias, any()) + residual, w, b); }));
  EXPECT_EQ(
      changed_tree(sch),
      R"tree(~ Stack(                                                                        # flattened
    (layer): ModuleList(
~     (0-2): 3 x ResidualMlp(                                                   # add replaced by bias_dropout_residual_layer_norm
        (up): Linear(in_features=8, out_features=32, bias=True)
        (act): GELU(approximate='none')
~       (down): DecomposedLinear(in_features=32, out_features=8, bias=True)     # decomposed
-       (drop): Dropout(p=0.2, inplace=False)                                   # replaced by bias_dropout_residual_layer_norm
-       (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)             # replaced by bias_dropout_residual_layer_norm
      )
    )
+   (Fused_0-2): 3 x bias_dropout_residual_layer_norm(p=0.2, eps=1e-05, mode=follow)  # by fuse
  ))tree");
}

TEST(Tree, MarksOnNodes) {
  Schedule sch = create_schedule(nn::make<test::ResidualMlp>(8), {{"x", randn({2, 8})}});
  sch["up"].checkpoint();
  sch.bind(sch.find([](const Tensor& x) { return gelu(x); }), "cpu.gelu");
  sch.annotate("down.weight", "placement", "packed");
  sch.annotate("norm", "why", "statistics");
  sch.print(sch.find([](const Tensor& x) { return call_module("down", x); }), "after");
  sch.replace([](const Tensor& x, const Tensor& y) { return exp(x) * y; },
              sch.find([](const Tensor& x, const Tensor& y) { return x + y; }));
  EXPECT_EQ(
      printed(sch),
      R"tree(~ ResidualMlp(                                                   # add replaced by mul; new: exp, mul; prints down
~   (up): Linear(in_features=8, out_features=32, bias=True)      # recomputed in backward
~   (act): GELU(approximate='none')                              # bound to cpu.gelu
~   (down): Linear(in_features=32, out_features=8, bias=True)    # weight: placement = packed
    (drop): Dropout(p=0.2, inplace=False)
~   (norm): LayerNorm((8,), eps=1e-05, elementwise_affine=True)  # why = statistics
  )

1. checkpoint on 'up': the module
2. bind: [[('', act)]] to cpu.gelu
3. annotate: 'down.weight': placement = packed
4. annotate: 'norm': why = statistics
5. print: [[('', down)]]
6. replace: [[('', add)]] by function)tree");
}

/// A convolution with the norm that it can do.
struct NormalizedConv : nn::Module {
  Tensor forward(const Tensor& x) const { return norm(conv(x)); }
  nn::Child<nn::Conv2d> conv = add<nn::Conv2d>("conv", 3, 4, 3);
  nn::Child<nn::BatchNorm2d> norm = add<nn::BatchNorm2d>("norm", 4);
};

std::string printed_fold() {
  const auto model = nn::make<NormalizedConv>();
  model->eval();
  Schedule sch = create_schedule(model, {{"x", randn({2, 3, 5, 5})}});
  sch.fold(sch.find("norm"));
  return printed(sch);
}

TEST(Tree, FoldedNorms) {
  EXPECT_EQ(
      printed_fold(),
      R"tree(  NormalizedConv(
-   (conv): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))                     # replaced by Folded_0
-   (norm): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)  # replaced by Folded_0
+   (Folded_0): Folded(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)  # by fold
  )

1. fold: [[('', norm)]] as Folded)tree");
}

TEST(Tree, EveryPrimitiveIsListed) {
  Schedule sch = schedule_of_attention();
  sch.fuse_parallel(sch.find("[qkv]_proj"));
  sch.annotate("proj", "key", "value");
  sch.bind(sch.find([](const Tensor& x) { return softmax(x, -1); }), "cpu.softmax");
  sch.replace_all<nn::Dropout>(
      [](const std::string&, nn::Dropout&) { return nn::make<nn::Dropout>(0.1); });
  sch["self_attn"].checkpoint();
  sch["proj.layer_norm"].print();
  sch["proj.dropout"].replace(nn::make<nn::Dropout>(0.1));
  schedule_tail(sch["proj"]);
  const std::string text = printed(sch) + "\n" + printed_fold();
  for (const PrimitiveInfo& primitive : list_primitives()) {
    if (primitive.name == "find" || primitive.name == "undo") continue;
    const std::string name = ". " + std::string(primitive.name);
    EXPECT_TRUE(text.find(name + " on '") != std::string::npos ||
                text.find(name + ": ") != std::string::npos)
        << name << "\n"
        << text;
  }
}

TEST(Tree, AReplayedSchedulePrintsTheSame) {
  Schedule sch = schedule_of_attention();
  apply_tutorial(sch);
  Schedule replayed = schedule_of_attention();
  load_schedule(replayed, save_schedule(sch));
  EXPECT_EQ(printed(replayed), printed(sch));
}

TEST(Tree, UndoneStepsLeaveNoTrace) {
  Schedule sch = schedule_of_attention();
  apply_tutorial(sch);
  while (!sch.applied().empty()) sch.undo();
  EXPECT_EQ(printed(sch), sch.model().to_string());
}

}  // namespace
}  // namespace tenon
