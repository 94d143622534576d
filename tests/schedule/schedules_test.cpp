// The ready-made schedules, on models that they were not written for.
#include "schedule/schedules.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "examples/attention_model.h"
#include "examples/gpt_model.h"
#include "schedule/verification.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 2;

int count(const Graph& graph, const std::string& op) {
  int found = 0;
  for (NodeId id : graph.order()) found += graph.node(id).op->name == op ? 1 : 0;
  return found;
}

const Node& only(const Graph& graph, const std::string& op) {
  EXPECT_EQ(count(graph, op), 1) << to_text(graph);
  for (NodeId id : graph.order()) {
    if (graph.node(id).op->name == op) return graph.node(id);
  }
  throw std::runtime_error("no " + op);
}

void expect_verified(const Schedule& sch) {
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
}

/// softmax(scores)·v in many spellings.
struct Spelling {
  const char* name;
  Tensor (*forward)(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask);
  bool recognized;
};

std::ostream& operator<<(std::ostream& stream, const Spelling& s) { return stream << s.name; }

/// Heads of three projections, attended as the spelling says.
struct SpelledAttention : nn::Module {
  explicit SpelledAttention(const Spelling& how)
      : wq(add<nn::Linear>("wq", kHidden, kHidden)),
        wk(add<nn::Linear>("wk", kHidden, kHidden, /*bias=*/false)),
        wv(add<nn::Linear>("wv", kHidden, kHidden)),
        spelling(how) {}
  Tensor heads(const Tensor& x) const {
    return x.view({x.size(0), x.size(1), kHeads, -1}).transpose(1, 2);
  }
  Tensor forward(const Tensor& x, const Tensor& mask) const {
    return spelling.forward(heads(wq(x)), heads(wk(x)), heads(wv(x)), mask);
  }
  nn::Child<nn::Linear> wq, wk, wv;
  Spelling spelling;
};

class Spellings : public ::testing::TestWithParam<Spelling> {};

TEST_P(Spellings, BecomeOneKernelWithTheSameResults) {
  const Spelling& how = GetParam();
  const auto model = nn::make<SpelledAttention>(how);
  Schedule sch = create_schedule(model, {{"x", randn({2, 5, kHidden})}, {"mask", randn({5, 5})}});
  // wk has no bias, so these three do not become one product: that is noted, and no failure.
  if (!how.recognized) {
    EXPECT_THROW(schedules::attention(sch), ScheduleError);
    EXPECT_EQ(count(sch.graph(), "scaled_dot_product_attention"), 0);
    return;
  }
  const schedules::Summary summary = schedules::attention(sch);
  EXPECT_EQ(summary.rewritten, 1);
  ASSERT_EQ(summary.refused.size(), 1U);
  EXPECT_NE(summary.refused[0].find("has a bias and"), std::string::npos) << summary.refused[0];
  only(sch.graph(), "scaled_dot_product_attention");
  EXPECT_EQ(count(sch.graph(), "softmax"), 0);
  expect_verified(sch);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, Spellings,
    ::testing::Values(
        Spelling{"Divided",
                 [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&) {
                   const Tensor scores = matmul(q, k.transpose(-2, -1)) / std::sqrt(8.0);
                   return matmul(dropout(softmax(scores, -1), 0.2), v);
                 },
                 true},
        Spelling{"ScaledQuery",
                 [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&) {
                   return matmul(softmax(matmul(q * 0.25, k.transpose(2, 3)), 3), v);
                 },
                 true},
        Spelling{"Unscaled",
                 [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&) {
                   return matmul(softmax(matmul(q, k.transpose(-1, -2)), -1), v);
                 },
                 true},
        Spelling{"AddedMask",
                 [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
                   const Tensor scores = matmul(q, k.transpose(-2, -1)) * 0.3;
                   return matmul(softmax(mask + scores, -1), v);
                 },
                 true},
        Spelling{"FilledMask",
                 [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
                   const Tensor scores = matmul(q, k.transpose(-2, -1)) / 2.0;
                   const Tensor hidden =
                       masked_fill(scores, gt(mask, 1.5), -std::numeric_limits<double>::infinity());
                   return matmul(softmax(hidden, -1), v);
                 },
                 true},
        Spelling{"OtherAxis",
                 [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&) {
                   return matmul(softmax(matmul(q, k.transpose(-2, -1)), -2), v);
                 },
                 false},
        Spelling{"FilledWithANumber",
                 [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
                   const Tensor scores = matmul(q, k.transpose(-2, -1));
                   return matmul(softmax(masked_fill(scores, gt(mask, 0), -1.0), -1), v);
                 },
                 false},
        Spelling{"ScoresUsedElsewhere",
                 [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&) {
                   const Tensor p = softmax(matmul(q, k.transpose(-2, -1)), -1);
                   return matmul(p, v) + sum(p);
                 },
                 false}),
    [](const auto& info) { return info.param.name; });

struct EncoderBlock : nn::Module {
  EncoderBlock()
      : attn(add<tutorial::Attention>("attn", kHidden, kHeads)),
        mlp(add<test::ResidualMlp>("mlp", kHidden)) {}
  Tensor forward(const Tensor& x) const { return mlp(attn(x)); }
  nn::Child<tutorial::Attention> attn;
  nn::Child<test::ResidualMlp> mlp;
};

TEST(Schedules, TransformerEncoder) {
  const auto model = nn::make<test::Stack<EncoderBlock>>(3);
  Schedule sch = create_schedule(model, {{"x", randn({2, 5, kHidden})}});
  const schedules::Summary summary = schedules::transformer_encoder(sch);
  EXPECT_TRUE(summary.refused.empty()) << summary.refused[0];
  EXPECT_EQ(count(sch.graph(), "scaled_dot_product_attention"), 3);
  EXPECT_EQ(count(sch.graph(), "bias_dropout_residual_layer_norm"), 6);
  EXPECT_EQ(count(sch.graph(), "linear_gelu"), 3);
  EXPECT_EQ(count(sch.graph(), "linear"), 9);  // one for q, k and v, one behind attention, one down
  EXPECT_EQ(count(sch.graph(), "softmax") + count(sch.graph(), "layer_norm"), 0);
  expect_verified(sch);
}

TEST(Schedules, GptRecognizesItsCausalMask) {
  gpt::GptOptions options;
  options.vocabulary = 11;
  options.hidden = kHidden;
  options.heads = kHeads;
  options.dropout = 0.1;
  const auto model = nn::make<gpt::Gpt>(options);
  Schedule sch = create_schedule(model, {{"tokens", TensorSpec{DType::int64, {2, 5}, kCpu}}});
  const schedules::Summary summary = schedules::gpt(sch);
  EXPECT_TRUE(summary.refused.empty()) << summary.refused[0];
  EXPECT_EQ(count(sch.graph(), "scaled_dot_product_attention"), 2);
  EXPECT_EQ(count(sch.graph(), "triu"), 0) << "the mask is still computed";
  EXPECT_EQ(count(sch.graph(), "linear_gelu"), 2);
  EXPECT_EQ(count(sch.graph(), "linear_residual"), 0) << "a dropout lies in between";
  expect_verified(sch);
}

TEST(Schedules, GptAddsResidualsInTheProduct) {
  gpt::GptOptions options;
  options.vocabulary = 11;
  options.hidden = kHidden;
  options.heads = kHeads;
  const auto model = nn::make<gpt::Gpt>(options);
  Schedule sch = create_schedule(model, {{"tokens", TensorSpec{DType::int64, {2, 5}, kCpu}}});
  const schedules::Summary summary = schedules::gpt(sch);
  EXPECT_TRUE(summary.refused.empty()) << summary.refused[0];
  EXPECT_EQ(count(sch.graph(), "linear_residual"), 4) << to_text(sch.graph());
  EXPECT_EQ(count(sch.graph(), "linear"), 3);  // two for queries, keys and values, the head
  expect_verified(sch);
}

/// A layer behind attention, and what is made of its result.
struct Tail {
  const char* name;
  bool bias;
  Tensor (*forward)(const Tensor& x, const nn::Child<nn::Linear>& dense);
  int activated, residuals;
};

std::ostream& operator<<(std::ostream& stream, const Tail& tail) { return stream << tail.name; }

struct TailModel : nn::Module {
  explicit TailModel(const Tail& how)
      : dense(add<nn::Linear>("dense", kHidden, kHidden, how.bias)), tail(how) {}
  Tensor forward(const Tensor& x) const {
    const Tensor y = matmul(softmax(matmul(x, x.transpose(-2, -1)), -1), x);
    return tail.forward(y, dense);
  }
  nn::Child<nn::Linear> dense;
  Tail tail;
};

class Tails : public ::testing::TestWithParam<Tail> {};

TEST_P(Tails, AreFusedWhereNothingElseNeedsTheProduct) {
  const Tail& tail = GetParam();
  Schedule sch = create_schedule(nn::make<TailModel>(tail), {{"x", randn({2, 5, kHidden})}});
  schedules::gpt(sch);
  const int activated = count(sch.graph(), "linear_gelu") + count(sch.graph(), "linear_relu") +
                        count(sch.graph(), "linear_silu");
  EXPECT_EQ(activated, tail.activated) << to_text(sch.graph());
  EXPECT_EQ(count(sch.graph(), "linear_residual"), tail.residuals) << to_text(sch.graph());
  expect_verified(sch);
}

using Dense = nn::Child<nn::Linear>;

INSTANTIATE_TEST_SUITE_P(
    Forms, Tails,
    ::testing::Values(
        Tail{"Gelu", true,
             [](const Tensor& x, const Dense& dense) { return gelu(dense(x), Approximate::tanh); },
             1, 0},
        Tail{"GeluWithoutBias", false,
             [](const Tensor& x, const Dense& dense) { return gelu(dense(x), Approximate::tanh); },
             1, 0},
        Tail{"ExactGeluWithoutBias", false,
             [](const Tensor& x, const Dense& dense) { return gelu(dense(x)); }, 1, 0},
        Tail{"Relu", true, [](const Tensor& x, const Dense& dense) { return relu(dense(x)); }, 1,
             0},
        Tail{"ReluWithoutBias", false,
             [](const Tensor& x, const Dense& dense) { return relu(dense(x)); }, 1, 0},
        Tail{"Silu", true, [](const Tensor& x, const Dense& dense) { return silu(dense(x)); }, 1,
             0},
        Tail{"SiluWithoutBias", false,
             [](const Tensor& x, const Dense& dense) { return silu(dense(x)); }, 1, 0},
        Tail{"SiluThatGates", false,
             [](const Tensor& x, const Dense& dense) { return silu(dense(x)) * sin(x); }, 0, 0},
        Tail{"InputOfGeluUsedElsewhere", true,
             [](const Tensor& x, const Dense& dense) {
               const Tensor y = dense(x);
               return gelu(y) * y;
             },
             0, 0},
        Tail{"ResidualFirst", true,
             [](const Tensor& x, const Dense& dense) { return x + dense(x); }, 0, 1},
        Tail{"ResidualLast", true, [](const Tensor& x, const Dense& dense) { return dense(x) + x; },
             0, 1},
        Tail{"NoBias", false, [](const Tensor& x, const Dense& dense) { return dense(x) + x; }, 0,
             1},
        Tail{"DropoutThatDropsNothing", true,
             [](const Tensor& x, const Dense& dense) { return x + dropout(dense(x), 0); }, 0, 1},
        Tail{"Dropout", true,
             [](const Tensor& x, const Dense& dense) { return x + dropout(dense(x), 0.1); }, 0, 0},
        Tail{"ResidualOfAnotherShape", true,
             [](const Tensor& x, const Dense& dense) { return dense(x) + x.narrow(1, 0, 1); }, 0,
             0},
        Tail{"ProductUsedElsewhere", true,
             [](const Tensor& x, const Dense& dense) {
               const Tensor y = dense(x);
               return x + y + sum(y);
             },
             0, 0},
        Tail{"TwoProducts", true,
             [](const Tensor& x, const Dense& dense) { return dense(x) + dense(sigmoid(x)); }, 0,
             1}),
    [](const auto& info) { return info.param.name; });

/// Ways to write the loss of a model's last layer, for x (2, 3, 4), a weight (5, 4), targets (2, 3).
struct LossSpelling {
  const char* name;
  std::vector<Tensor> (*forward)(const Tensor& x, const Tensor& w, const Tensor& targets);
  bool recognized;
};

const LossSpelling kLosses[] = {
    {"rows",
     [](const Tensor& x, const Tensor& w, const Tensor& t) {
       return std::vector{cross_entropy(linear(x, w).view({-1, 5}), t.view({-1}))};
     },
     true},
    {"a sum, smoothed, another index ignored",
     [](const Tensor& x, const Tensor& w, const Tensor& t) {
       return std::vector{
           cross_entropy(linear(x, w).view({-1, 5}), t.view({-1}), {2, Reduction::sum, 0.25})};
     },
     true},
    {"rows from the start",
     [](const Tensor& x, const Tensor& w, const Tensor& t) {
       return std::vector{cross_entropy(linear(x.view({-1, 4}), w), t.view({-1}))};
     },
     true},
    {"logits returned too",
     [](const Tensor& x, const Tensor& w, const Tensor& t) {
       const Tensor logits = linear(x, w);
       return std::vector{cross_entropy(logits.view({-1, 5}), t.view({-1})), logits};
     },
     false},
    {"a bias",
     [](const Tensor& x, const Tensor& w, const Tensor& t) {
       return std::vector{cross_entropy(linear(x, w, ones({5})).view({-1, 5}), t.view({-1}))};
     },
     false},
    {"classes not last",
     [](const Tensor& x, const Tensor& w, const Tensor& t) {
       return std::vector{cross_entropy(linear(x, w).transpose(1, 2), t)};
     },
     false},
    {"another width of rows",
     [](const Tensor& x, const Tensor& w, const Tensor& t) {
       return std::vector{cross_entropy(linear(x, w).view({-1, 15}), t.narrow(1, 0, 1).view({-1}))};
     },
     false},
    {"a loss for each row",
     [](const Tensor& x, const Tensor& w, const Tensor& t) {
       return std::vector{
           cross_entropy(linear(x, w).view({-1, 5}), t.view({-1}), {.reduction = Reduction::none})};
     },
     false},
};

TEST(Schedules, TheLossOfTheLastLayerNeedsNoLogits) {
  for (const LossSpelling& how : kLosses) {
    SCOPED_TRACE(how.name);
    struct Model : nn::Module {
      explicit Model(const LossSpelling& spelled)
          : weight(register_parameter("weight", randn({5, 4}))), spelling(spelled) {}
      std::vector<Tensor> forward(const Tensor& x, const Tensor& targets) const {
        // Something that the schedule always rewrites, so that it is not refused as a whole.
        const Tensor y = matmul(softmax(matmul(x, x.transpose(-2, -1)) / 2.0, -1), x);
        return spelling.forward(y, weight, targets);
      }
      Tensor weight;
      LossSpelling spelling;
    };
    const auto model = nn::make<Model>(how);
    Schedule sch = create_schedule(
        model, {{"x", randn({2, 3, 4})}, {"targets", TensorSpec{DType::int64, {2, 3}, kCpu}}});
    schedules::gpt(sch);
    EXPECT_EQ(count(sch.graph(), "linear_cross_entropy"), how.recognized ? 1 : 0);
    EXPECT_EQ(count(sch.graph(), "cross_entropy"), how.recognized ? 0 : 1);
    expect_verified(sch);
  }
}

TEST(Schedules, AMaskThatIsNotCausalIsHandedOn) {
  const auto model = test::function_model([](const Tensor& q, const Tensor& k) {
    const Tensor one = full({}, 1);
    const Tensor hidden = gt(triu(one.expand({q.size(-2), k.size(-2)}), 2), 0);  // one key too many
    const Tensor scores = matmul(q, k.transpose(-2, -1)) / 4.0;
    return matmul(
        softmax(masked_fill(scores, hidden, -std::numeric_limits<double>::infinity()), -1), k);
  });
  Schedule sch = create_schedule(model, {randn({2, 5, 8}), randn({2, 5, 8})});
  schedules::gpt(sch);
  EXPECT_EQ(count(sch.graph(), "triu"), 1);
  expect_verified(sch);
}

TEST(Schedules, SomethingElseIsRefused) {
  const auto model = test::function_model([](const Tensor& x) { return relu(x); });
  Schedule sch = create_schedule(model, {randn({2, 5})});
  EXPECT_ERROR(ScheduleError, "schedules::attention found nothing to rewrite",
               schedules::attention(sch));
  EXPECT_ERROR(ScheduleError, "schedules::gpt found nothing to rewrite", schedules::gpt(sch));
}

TEST(Schedules, EveryPrimitiveIsListedOnce) {
  std::string names;
  for (const PrimitiveInfo& info : list_primitives()) {
    EXPECT_FALSE(info.description.empty()) << info.name;
    names += std::string(info.name) + " ";
  }
  EXPECT_EQ(
      names,
      "annotate bind checkpoint decompose find fold fuse fuse_parallel print replace replace_all "
      "trace undo ");
}

}  // namespace
}  // namespace tenon
