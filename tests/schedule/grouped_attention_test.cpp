// Heads that a model repeats for groups of the query's, in many spellings: ready-made schedules read them
// where they are, and leave alone what only looks like it.
#include <gtest/gtest.h>

#include "nn/nn.h"
#include "schedule/schedules.h"
#include "tests/support/count_nodes.h"
#include "tests/support/schedule_checks.h"

namespace tenon::test {
namespace grouped_attention_test {

constexpr std::int64_t kHeads = 6, kKeyHeads = 2, kGroup = 3, kHead = 4, kHidden = kHeads * kHead;

/// (B, Hkv, S, D) to (B, H, S, D).
using Repeat = Tensor (*)(const Tensor& x);

/// Where the mask, if any, comes from, and how the query attends.
struct Spelling {
  const char* name;
  Repeat keys, values;
  bool recognized = true;
  double dropout_p = 0;
  bool masked = false;
};

std::ostream& operator<<(std::ostream& stream, const Spelling& s) { return stream << s.name; }

Tensor by_expand(const Tensor& x) {
  return x.unsqueeze(2)
      .expand({x.size(0), kKeyHeads, kGroup, x.size(2), kHead})
      .reshape({x.size(0), kHeads, x.size(2), kHead});
}

Tensor indices(const std::vector<std::int64_t>& heads) { return from_vector(heads, {kHeads}); }

Tensor by_index(const Tensor& x) { return index_select(x, 1, indices({0, 0, 0, 1, 1, 1})); }

Tensor by_stack(const Tensor& x) {
  return stack({x, x, x}, 2).reshape({x.size(0), kHeads, x.size(2), kHead});
}

Tensor by_cat_of_heads(const Tensor& x) {
  const Tensor a = x.narrow(1, 0, 1), b = x.narrow(1, 1, 1);
  return cat({a, a, a, b, b, b}, 1);
}

/// Rows before heads, as they come out of the product.
Tensor before_transpose(const Tensor& x) {
  const Tensor rows = x.transpose(1, 2);
  return rows.unsqueeze(3)
      .expand({x.size(0), x.size(2), kKeyHeads, kGroup, kHead})
      .reshape({x.size(0), x.size(2), kHeads, kHead})
      .transpose(1, 2);
}

Tensor by_view_and_contiguous(const Tensor& x) {
  return x.contiguous()
      .view({x.size(0), kKeyHeads, 1, x.size(2), kHead})
      .expand({x.size(0), kKeyHeads, kGroup, x.size(2), kHead})
      .contiguous()
      .view({x.size(0), kHeads, x.size(2), kHead});
}

struct Model : nn::Module {
  explicit Model(const Spelling& how, bool biased = false)
      : q(add<nn::Linear>("q", kHidden, kHidden, biased)),
        k(add<nn::Linear>("k", kHidden, kKeyHeads * kHead, biased)),
        v(add<nn::Linear>("v", kHidden, kKeyHeads * kHead, biased)),
        o(add<nn::Linear>("o", kHidden, kHidden, biased)),
        spelling(how) {}
  static Tensor split(const Tensor& x, std::int64_t heads) {
    return x.view({x.size(0), x.size(1), heads, kHead}).transpose(1, 2);
  }
  Tensor forward(const Tensor& x, const Tensor& mask) const {
    const Tensor y = scaled_dot_product_attention(
        split(q(x), kHeads), spelling.keys(split(k(x), kKeyHeads)),
        spelling.values(split(v(x), kKeyHeads)), spelling.masked ? mask : Tensor(),
        {.dropout_p = spelling.dropout_p, .is_causal = !spelling.masked});
    return o(y.transpose(1, 2).reshape({x.size(0), x.size(1), kHidden}));
  }
  nn::Child<nn::Linear> q, k, v, o;
  Spelling spelling;
};

std::int64_t key_heads_of(const Graph& graph) {
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (node.op->name != "scaled_dot_product_attention") continue;
    const auto heads = [&](std::size_t operand) {
      return graph.value(node.inputs.at(operand)).spec.shape[-3].value();
    };
    EXPECT_EQ(heads(1), heads(2));
    return heads(1);
  }
  return 0;
}

class Grouped : public ::testing::TestWithParam<Spelling> {};

TEST_P(Grouped, IsReadOnceWithTheSameResults) {
  const Spelling& how = GetParam();
  const auto model = initialized<Model>(how);
  model->requires_grad_();
  model->train();
  const Tensor x = randn({2, 5, kHidden}), mask = randn({kHeads, 5, 5});
  Schedule sch = create_schedule(model, {{"x", x}, {"mask", mask}});
  const schedules::Summary summary = schedules::attention(sch);  // the three projections, at least
  EXPECT_EQ(summary.rewritten, how.recognized ? 2 : 1);
  EXPECT_EQ(key_heads_of(sch.graph()), how.recognized ? kKeyHeads : kHeads);
  if (how.recognized) {
    for (const char* op : {"expand", "cat", "index_select", "reshape"}) {
      const int others = std::string_view(op) == "cat" || std::string_view(op) == "reshape" ? 1 : 0;
      EXPECT_EQ(count_nodes(sch.graph(), op), others) << op << "\n" << to_text(sch.graph());
    }
  }
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  expect_same_step(program_step(sch, {x, mask}), eager_step(model, {x, mask}), 1e-5);
  // Other sizes than the traced ones.
  const Tensor longer = randn({3, 9, kHidden}), longer_mask = randn({kHeads, 9, 9});
  model->eval();
  Executor run = build(sch, {.verify = false});
  expect_close(run(longer, longer_mask), model(longer, longer_mask), 1e-5, "longer rows");
}

Tensor with_tiles(const Tensor& x) { return cat({x, x, x}, 1); }

INSTANTIATE_TEST_SUITE_P(
    Spellings, Grouped,
    ::testing::Values(
        Spelling{"Expand", by_expand, by_expand}, Spelling{"IndexSelect", by_index, by_index},
        Spelling{"Stack", by_stack, by_stack},
        Spelling{"CatOfHeads", by_cat_of_heads, by_cat_of_heads},
        Spelling{"BeforeTranspose", before_transpose, before_transpose},
        Spelling{"ViewAndContiguous", by_view_and_contiguous, by_view_and_contiguous},
        Spelling{"Mixed", by_index, before_transpose},
        Spelling{"Dropout", by_expand, by_stack, true, 0.3},
        Spelling{"Mask", by_expand, by_expand, true, 0.2, true},
        // What must stay.
        Spelling{"Tiled", with_tiles, with_tiles, false},
        Spelling{"KeysAlone", by_expand, with_tiles, false},
        Spelling{"ExpandedTheOtherWay",
                 [](const Tensor& x) {
                   return x.unsqueeze(1)
                       .expand({x.size(0), kGroup, kKeyHeads, x.size(2), kHead})
                       .reshape({x.size(0), kHeads, x.size(2), kHead});
                 },
                 by_expand, false},
        Spelling{"OtherIndices",
                 [](const Tensor& x) {
                   return index_select(x, 1, indices({0, 0, 1, 0, 1, 1}));
                 },
                 by_expand, false},
        Spelling{"UnevenGroups",
                 [](const Tensor& x) {
                   return index_select(x, 1, indices({0, 0, 0, 0, 1, 1}));
                 },
                 by_expand, false},
        Spelling{"HeadsExchanged",
                 [](const Tensor& x) {
                   const Tensor a = x.narrow(1, 0, 1), b = x.narrow(1, 1, 1);
                   return cat({b, b, b, a, a, a}, 1);
                 },
                 by_expand, false},
        Spelling{"StackOfOthers",
                 [](const Tensor& x) {
                   return stack({x, x * 2.0, x}, 2).reshape({x.size(0), kHeads, x.size(2), kHead});
                 },
                 by_expand, false},
        Spelling{"ScaledAfterwards", [](const Tensor& x) { return by_expand(x) * 2.0; }, by_expand,
                 false}),
    [](const auto& info) { return info.param.name; });

/// One head of keys for all, which expand alone gives, and keys without an axis of heads.
TEST(GroupedAttention, OneHeadForAll) {
  struct Shared : nn::Module {
    Shared() : k(add<nn::Linear>("k", kHidden, kHead)), v(add<nn::Linear>("v", kHidden, kHead)) {}
    Tensor forward(const Tensor& x) const {
      const Dim &b = x.size(0), &n = x.size(1);
      const Tensor q = x.view({b, n, kHeads, kHead}).transpose(1, 2);
      const auto all = [&](const Tensor& y) {
        return y.unsqueeze(1).expand({b, kHeads, n, kHead});
      };
      return scaled_dot_product_attention(q, all(k(x)), all(v(x)));
    }
    nn::Child<nn::Linear> k, v;
  };
  const auto model = initialized<Shared>();
  model->requires_grad_();
  const Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"x", x}});
  schedules::gpt(sch);
  EXPECT_EQ(key_heads_of(sch.graph()), 1);
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  expect_same_step(program_step(sch, {x}), eager_step(model, {x}), 1e-5);
}

/// A repeated tensor that something else reads too: it is there anyway, and stays.
TEST(GroupedAttention, ARepeatThatIsReadElsewhereIsLeftAlone) {
  struct Model2 : nn::Module {
    std::vector<Tensor> forward(const Tensor& q, const Tensor& k) const {
      const Tensor all = by_expand(k);
      return {scaled_dot_product_attention(q, all, all), all};
    }
  };
  const auto model = nn::make<Model2>();
  Schedule sch = create_schedule(
      model, {{"q", randn({2, kHeads, 5, kHead})}, {"k", randn({2, kKeyHeads, 5, kHead})}});
  const std::string before = to_text(sch.graph());
  const std::string reason = error_text<ScheduleError>([&] { schedules::attention(sch); });
  EXPECT_NE(reason.find("is an intermediate of the match and is also used by"), std::string::npos)
      << reason;
  EXPECT_EQ(to_text(sch.graph()), before);
}

/// No gradient flows through one of them.
TEST(GroupedAttention, ADetachedRepeatIsLeftAlone) {
  struct Detached : nn::Module {
    Tensor forward(const Tensor& q, const Tensor& k) const {
      return scaled_dot_product_attention(q, by_expand(k).detach(), by_expand(k));
    }
  };
  const auto model = nn::make<Detached>();
  Schedule sch = create_schedule(
      model, {{"q", randn({2, kHeads, 5, kHead})}, {"k", randn({2, kKeyHeads, 5, kHead})}});
  EXPECT_THROW(schedules::attention(sch), ScheduleError);
}

/// A buffer may hold other indices in the next run.
TEST(GroupedAttention, IndicesOfABufferAreNotKnown) {
  struct Indexed : nn::Module {
    Indexed() { order = register_buffer("order", indices({0, 0, 0, 1, 1, 1})); }
    Tensor forward(const Tensor& q, const Tensor& k) const {
      const Tensor all = index_select(k, 1, order);
      return scaled_dot_product_attention(q, all, all);
    }
    Tensor order;
  };
  const auto model = nn::make<Indexed>();
  Schedule sch = create_schedule(
      model, {{"q", randn({2, kHeads, 5, kHead})}, {"k", randn({2, kKeyHeads, 5, kHead})}});
  EXPECT_THROW(schedules::attention(sch), ScheduleError);
}

}  // namespace grouped_attention_test
}  // namespace tenon::test
