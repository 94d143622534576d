// Rows 10-13 and 15 of the feature table: replacing branches, chains and whole modules, by modules and by
// functions, and what a refused call leaves behind.
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>

#include "examples/attention_model.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace {

using test::expect_equivalent;
using test::expect_refused;
using test::function_model;
using test::initialized;
using test::same_values;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 4;

/// Projections of any name, split into heads.
auto heads_of(std::string regex) {
  return [regex = std::move(regex)](const Tensor& x) {
    const Tensor y = call_module(regex, x);
    return y.view({y.size(0), y.size(1), kHeads, -1}).permute({0, 2, 1, 3});
  };
}

/// The first `count` of FusedQKV's results, for fewer branches.
struct FusedHeads : nn::Module {
  explicit FusedHeads(std::int64_t count)
      : fused_linear(add<nn::Linear>("fused_linear", kHidden, count * kHidden)), branches(count) {}
  std::vector<Tensor> forward(const Tensor& x) const {
    std::vector<Tensor> results;
    for (const Tensor& y : chunk(fused_linear(x), branches, -1)) {
      results.push_back(y.view({y.size(0), y.size(1), kHeads, -1}).permute({0, 2, 1, 3}));
    }
    return results;
  }
  nn::Child<nn::Linear> fused_linear;
  std::int64_t branches;
};

// --- row 10 -------------------------------------------------------------------------------------

TEST(FeatureTable, Row10_HorizontalReplaceKeepsOutputsAndGradients) {
  const auto model = initialized<tutorial::Attention>(kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"hidden_states", x}});
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(heads_of("[qkv]_proj")));
  EXPECT_EQ(sch.find("fused_linear").size(), 1U);
  EXPECT_TRUE(sch.find("[qkv]_proj").empty());
  expect_equivalent(model, sch, {x});
}

TEST(FeatureTable, Row10_ABranchUserBetweenBranches) {
  // The queries are scaled before the keys are computed.
  const auto model = initialized<test::EncoderLayer>(kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.replace(nn::make<FusedHeads>(3), sch.find(heads_of("query|key|value")));
  expect_equivalent(model, sch, {x});
}

TEST(FeatureTable, Row10_FuseParallelNeedsNoModule) {
  const auto model = initialized<test::EncoderLayer>(kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.fuse_parallel(sch.find([](const Tensor& y) { return call_module("query|key|value", y); }));
  EXPECT_NE(sch.to_string().find("(FusedLinear_0): FusedLinear(in_features=16, out_features=48, "
                                 "bias=True)"),
            std::string::npos)
      << sch;
  expect_equivalent(model, sch, {x});
}

TEST(FeatureTable, Row10_CrossAttentionIsRefused) {
  const auto model = initialized<test::CrossAttention>(kHidden, kHeads);
  const std::vector<Tensor> inputs = {randn({2, 5, kHidden}), randn({2, 7, kHidden})};
  Schedule sch = create_schedule(model, {{"x", inputs[0]}, {"memory", inputs[1]}});
  const Matches all = sch.find(heads_of("[qkv]_proj"));
  ASSERT_EQ(all.size(), 3U);
  expect_refused(sch,
                 "replace refused: FusedHeads returns 3 tensors for 3 matches that read the same "
                 "input, but these do not share their input: permute reads %x; permute_1 reads "
                 "%memory; permute_2 reads %memory",
                 [&] { sch.replace(nn::make<FusedHeads>(3), all); });
  expect_refused(sch, "q_proj reads %x alone; needed at least two linear nodes of one input", [&] {
    sch.fuse_parallel(sch.find([](const Tensor& y) { return call_module("[qkv]_proj", y); }));
  });
  // Keys and values do share theirs.
  sch.replace(nn::make<FusedHeads>(2), sch.find(heads_of("[kv]_proj")));
  expect_equivalent(model, sch, inputs);
}

TEST(FeatureTable, Row10_AnEscapingIntermediateIsRefused) {
  struct Model : nn::Module {
    explicit Model(bool returned)
        : q_proj(add<nn::Linear>("q_proj", kHidden, kHidden)),
          k_proj(add<nn::Linear>("k_proj", kHidden, kHidden)),
          returns(returned) {}
    std::vector<Tensor> forward(const Tensor& x) const {
      const Tensor q = q_proj(x);
      const Tensor k = k_proj(x);
      const auto split = [](const Tensor& y) {
        return y.view({y.size(0), y.size(1), kHeads, -1}).permute({0, 2, 1, 3});
      };
      const Tensor scores = matmul(split(q), split(k).transpose(-2, -1));
      if (returns) return {scores, q};
      return {scores + sum(q)};
    }
    nn::Child<nn::Linear> q_proj, k_proj;
    bool returns;
  };
  for (const bool returns : {false, true}) {
    Schedule sch = create_schedule(nn::make<Model>(returns), {randn({2, 5, kHidden})});
    const Matches matches = sch.find(heads_of("[qk]_proj"));
    EXPECT_EQ(matches.size(), 1U);  // the keys
    const std::string user = returns ? "the graph's output" : "sum";
    EXPECT_NE(matches.explain().find(
                  "%q_proj is an intermediate of the match and is also used by " + user),
              std::string::npos)
        << matches.explain();
    expect_refused(sch, "FusedHeads returns 2 tensors; needed 1 (each match on its own)",
                   [&] { sch.replace(nn::make<FusedHeads>(2), matches); });
  }
}

// --- row 11 -------------------------------------------------------------------------------------

/// Attention that reads the values first and the queries last.
Tensor reversed(const Tensor& q, const Tensor& k, const Tensor& v) {
  const Tensor w = v * 2.0;
  const Tensor kt = k.transpose(-2, -1);
  return matmul(dropout(softmax(matmul(q, kt) / sqrt(q.size(-1)), -1), 0.1), w);
}

TEST(FeatureTable, Row11_TensorsBindByPatternParameter) {
  const auto model =
      function_model([](const Tensor& x) { return reversed(x * 0.5, sigmoid(x), tanh(x)); });
  const std::vector<Tensor> inputs = {randn({2, 3, 5, 4})};
  const auto flash = [](const Tensor& q, const Tensor& k, const Tensor& v) {
    return scaled_dot_product_attention(q, k, v * 2.0, {}, {.dropout_p = 0.1});
  };
  Schedule natural = create_schedule(model, {inputs[0]});
  natural.replace(flash, natural.find(reversed));
  Schedule permuted = create_schedule(model, {inputs[0]});
  permuted.replace(
      [=](const Tensor& v, const Tensor& q, const Tensor& k) { return flash(q, k, v); },
      permuted.find(
          [](const Tensor& v, const Tensor& q, const Tensor& k) { return reversed(q, k, v); }));
  Executor plain(natural.original());
  Executor a = build(natural);
  Executor b = build(permuted);
  for (const bool training : {false, true}) {
    const auto run = [&](Executor& executor) {
      manual_seed(test::kSeed);
      return executor.run(inputs, training).at(0);
    };
    EXPECT_TRUE(same_values(run(a), run(b)));
    test::expect_close(run(a), run(plain), 1e-6, "attention");
  }
  // Bound otherwise it is another function, which verification sees.
  Schedule wrong = create_schedule(model, {inputs[0]});
  wrong.replace([=](const Tensor& k, const Tensor& q, const Tensor& v) { return flash(q, k, v); },
                wrong.find(reversed));
  EXPECT_FALSE(verify(wrong).ok());
}

struct Scaled : nn::Module {
  static constexpr std::array kForwardArgs = {"query", "factor", "key", "shift", "name"};
  Tensor forward(const Tensor& query, double factor, const Tensor& key,
                 const std::optional<Tensor>& shift, const std::string& name) const {
    const Tensor product = name == "product" ? query * key : query + key;
    return shift ? product * factor + *shift : product * factor;
  }
};

TEST(FeatureTable, Row11_ConcreteArgumentsBindByName) {
  const auto model =
      function_model([](const Tensor& x, const Tensor& y) { return relu(x) * exp(y) * 3.0; });
  const std::vector<Tensor> inputs = {randn({4, 3}), randn({4, 3})};
  Schedule sch = create_schedule(model, {{"x", inputs[0]}, {"y", inputs[1]}});
  const Matches matches = sch.find([](const Tensor& a, const Tensor& b) { return a * b * 3.0; });
  const auto replace = [&](Arguments arguments) {
    sch.replace(nn::make<Scaled>(), matches, {.concrete_args = std::move(arguments)});
  };
  expect_refused(sch, "Scaled needs a value for its parameter 'factor'; give it in concrete_args",
                 [&] {
                   replace({{"shift", std::monostate{}}, {"name", std::string("product")}});
                 });
  expect_refused(sch, "the value given for parameter 'factor' of Scaled has another type", [&] {
    replace({{"factor", std::string("3")},
             {"shift", std::monostate{}},
             {"name", std::string("product")}});
  });
  expect_refused(sch,
                 "concrete_args: Scaled has no parameter 'z'; it has query, factor, key, shift, "
                 "name",
                 [&] {
                   replace({{"z", std::int64_t{0}}});
                 });
  expect_refused(sch, "Scaled takes 1 tensors; the pattern has 2 parameters", [&] {
    replace({{"factor", 3.0},
             {"key", ones({4, 3})},
             {"shift", std::monostate{}},
             {"name", std::string("product")}});
  });
  replace({{"factor", std::int64_t{3}},  // an integer where a double is wanted
           {"shift", std::monostate{}},
           {"name", std::string("product")}});
  EXPECT_TRUE(verify(sch).ok());
  EXPECT_TRUE(same_values(build(sch).run(inputs).at(0), model.call(inputs).at(0)));
}

// --- row 12 -------------------------------------------------------------------------------------

TEST(FeatureTable, Row12_ReplaceByFunctionFromTopOrBelowIsTheSame) {
  const auto model = initialized<test::Stack<tutorial::Attention>>(2, kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  const auto flash = [](const Tensor& q, const Tensor& k, const Tensor& v) {
    return scaled_dot_product_attention(q, k, v, {}, {.dropout_p = 0.1});
  };
  Schedule top = create_schedule(model, {x});
  top.replace(flash, top.find(tutorial::scaled_dot_product));
  Schedule below = create_schedule(model, {x});
  for (const char* path : {"layer.0.self_attn", "layer.1.self_attn"}) {
    Schedule sub = below[path];
    sub.replace(flash, sub.find(tutorial::scaled_dot_product));
  }
  Schedule mixed =
      create_schedule(model, {x});  // found at the top, replaced from a level in between
  mixed["layer.0"].replace(flash, mixed.find(tutorial::scaled_dot_product));
  EXPECT_EQ(to_text(top.graph()), to_text(below.graph()));
  EXPECT_EQ(to_text(top.graph()), to_text(mixed.graph()));
  EXPECT_EQ(top.find("function.*").size(), 0U);  // a function is no module
  expect_equivalent(model, top, {x});
}

TEST(FeatureTable, Row12_AFunctionGivesTheNewResultAtOnce) {
  // Slapo's graph changed while its code did not: 2 instead of 100.
  struct Inner : nn::Module {
    Tensor forward(const Tensor& x) const { return x + 1.0; }
  };
  struct Model : nn::Module {
    Model() : inner(add<Inner>("inner")) {}
    Tensor forward(const Tensor& x) const { return inner(x); }
    nn::Child<Inner> inner;
  };
  Schedule sch = create_schedule(nn::make<Model>(), {ones({1})});
  sch.replace([](const Tensor& x) { return x * 100.0; },
              sch.find([](const Tensor& x) { return x + 1.0; }));
  EXPECT_EQ(build(sch, {.verify = false})(ones({1})).item(), 100.0);
  EXPECT_THROW(build(sch), VerificationError);
}

// --- row 13 -------------------------------------------------------------------------------------

struct RefusedCase {
  const char* name;
  std::function<void(Schedule&)> call;
  std::string message;
};

std::ostream& operator<<(std::ostream& stream, const RefusedCase& c) { return stream << c.name; }

class FeatureTableRefusals : public ::testing::TestWithParam<RefusedCase> {};

TEST_P(FeatureTableRefusals, Row13_LeaveGraphAndOutputByteEqual) {
  const auto model = initialized<test::Stack<tutorial::Attention>>(2, kHidden, kHeads);
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"hidden_states", x}});
  sch["layer.0.proj.dense"].decompose();
  sch["layer.0.self_attn"].checkpoint();
  Executor before(sch.graph());
  manual_seed(test::kSeed);
  const Tensor inputs[] = {x};
  const Tensor expected = before.run(inputs, true).at(0);
  expect_refused(sch, GetParam().message, [&] { GetParam().call(sch); });
  EXPECT_EQ(sch.graph().annotations().size(), 0U);
  manual_seed(test::kSeed);
  EXPECT_TRUE(same_values(build(sch, {.verify = false}).run(inputs, true).at(0), expected));
}

/// Fits the first match and not the second, so that the first was rewritten when the call is refused.
Tensor fails_at_the_second_call(const Tensor& x) {
  static int calls = 0;
  if (++calls % 3 == 0) throw ValueError("the third call is refused");
  return relu(x);
}

INSTANTIATE_TEST_SUITE_P(
    All, FeatureTableRefusals,
    ::testing::Values(
        RefusedCase{"ReplaceWithoutAMatch",
                    [](Schedule& s) {
                      s.replace([](const Tensor& x) { return relu(x); },
                                s.find([](const Tensor& x) { return relu(x); }));
                    },
                    "replace refused: the match is empty"},
        RefusedCase{"ReplaceByAnotherShape",
                    [](Schedule& s) {
                      s.replace([](const Tensor& x) { return x.transpose(0, 1); },
                                s.find([](const Tensor& x) { return softmax(x, -1); }));
                    },
                    "replace refused: function returns float32(4, s0, s1, s1) in place of"},
        RefusedCase{"ReplaceByAnotherDtype",
                    [](Schedule& s) {
                      s["layer.1"].replace(
                          [](const Tensor& x) { return softmax(x, -1).to(DType::float64); },
                          s["layer.1"].find([](const Tensor& x) { return softmax(x, -1); }));
                    },
                    "replace on 'layer.1' refused: function returns float64(s0, 4, s1, s1)"},
        RefusedCase{"ReplaceThatFailsHalfway",
                    [](Schedule& s) {
                      s.replace(fails_at_the_second_call,
                                s.find([](const Tensor& x) { return softmax(x, -1); }));
                    },
                    "replace refused: the third call is refused"},
        RefusedCase{"ReplaceThatFixesASize",
                    [](Schedule& s) {
                      s.replace(
                          [](const Tensor& x) {
                            return softmax(x, -1) + zeros({5, 5});
                          },
                          s.find([](const Tensor& x) { return softmax(x, -1); }));
                    },
                    "replace refused: the rewrite holds for some sizes only: it needs s1 == 5"},
        RefusedCase{
            "ReplaceModuleOfAnotherWidth",
            [](Schedule& s) { s["layer.1.proj.dense"].replace(nn::make<nn::Linear>(kHidden, 8)); },
            "replace on 'layer.1.proj.dense' refused: parameter 'weight' of Linear is "
            "float32(8, 16); its sources make float32(16, 16)"},
        RefusedCase{"ReplaceAllOfAClassThatIsNotThere",
                    [](Schedule& s) {
                      s.replace_all<nn::Conv2d>(
                          [](const std::string&, nn::Conv2d&) { return nn::make<nn::ReLU>(); });
                    },
                    "replace_all refused: no module of class Conv2d is called below ''"},
        RefusedCase{"ReplaceAllThatFailsHalfway",
                    [](Schedule& s) {
                      s.replace_all<nn::LayerNorm>([](const std::string& path, nn::LayerNorm&) {
                        return nn::make<nn::LayerNorm>(path == "layer.1.proj.layer_norm" ? 8
                                                                                         : kHidden);
                      });
                    },
                    "replace_all refused: "},
        RefusedCase{"FuseWithoutAKernel",
                    [](Schedule& s) {
                      s.fuse(s.find([](const Tensor& q, const Tensor& k) {
                        return softmax(matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1)), -1);
                      }));
                    },
                    "fuse refused: no fused op is registered for the composition of"},
        RefusedCase{"FuseParallelOfAnotherOp",
                    [](Schedule& s) {
                      s.fuse_parallel(s.find([](const Tensor& x) { return softmax(x, -1); }));
                    },
                    "fuse_parallel refused: fuse_parallel joins linear nodes; "
                    "layer.0.self_attn.softmax is softmax"},
        RefusedCase{"DecomposeOfAnElementaryOp",
                    [](Schedule& s) { s["layer.1.proj.layer_norm"].decompose(); },
                    "decompose on 'layer.1.proj.layer_norm' refused: "},
        RefusedCase{"TraceOfAnUnknownLeaf",
                    [](Schedule& s) { s.trace({.flatten = true, .leaf_modules = {"Nothing"}}); },
                    "trace refused: leaf_modules: no module below '' is called 'Nothing'"},
        RefusedCase{"CheckpointInACheckpoint", [](Schedule& s) { s["layer.0"].checkpoint(); },
                    "is recomputed already: checkpoints do not nest or overlap"},
        RefusedCase{"CheckpointOfTheSecondMatchOnly",
                    [](Schedule& s) {
                      s["layer.1.self_attn.q_proj"].checkpoint();
                      s.undo();
                      s.checkpoint(s.find("proj|self_attn"));
                    },
                    "is recomputed already: checkpoints do not nest or overlap"},
        RefusedCase{"BindToNothing",
                    [](Schedule& s) {
                      s.bind(s.find([](const Tensor& x) { return softmax(x, -1); }), "cuda.magic");
                    },
                    "bind refused: no matched node has an implementation 'cuda.magic'"},
        RefusedCase{"AnnotateWhatIsNotThere",
                    [](Schedule& s) { s["layer.1"].annotate("x_proj.weight", "a", "b"); },
                    "annotate on 'layer.1' refused: the model has no module, parameter or buffer "
                    "'layer.1.x_proj.weight'"},
        RefusedCase{"PrintWithoutAMatch",
                    [](Schedule& s) { s.print(s.find([](const Tensor& x) { return exp(x); })); },
                    "print refused: the match is empty"}),
    [](const auto& one) { return one.param.name; });

TEST(FeatureTable, Row13_AnUndoWithNothingToUndoIsRefused) {
  Schedule sch = create_schedule(nn::make<test::ResidualMlp>(8), {randn({3, 8})});
  expect_refused(sch, "undo: nothing to undo, no primitive was applied", [&] { sch.undo(); });
}

TEST(FeatureTable, Row13_AForeignExceptionLeavesTheGraphToo) {
  Schedule sch = create_schedule(nn::make<test::ResidualMlp>(8), {randn({3, 8})});
  const std::string before = to_text(sch.graph());
  const std::size_t guards = sch.graph().guards()->guards.size();
  EXPECT_THROW(sch.replace(
                   [](const Tensor& x) -> Tensor {
                     if (x.size(0) == Dim(3)) throw std::runtime_error("not one of the library's");
                     return x;
                   },
                   sch.find([](const Tensor& x) { return gelu(x); })),
               std::runtime_error);
  EXPECT_EQ(to_text(sch.graph()), before);
  EXPECT_EQ(sch.graph().guards()->guards.size(), guards);
  EXPECT_TRUE(sch.applied().empty());
  EXPECT_TRUE(verify(sch).ok());
}

}  // namespace
}  // namespace tenon
