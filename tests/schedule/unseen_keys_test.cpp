// Queries that see no key, in schedules: attention in place of a written-out softmax may turn NaN into
// zeros, which is said; a softmax in place of attention would turn zeros into NaN, which is refused.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "schedule/report.h"
#include "schedule/schedule.h"
#include "schedule/schedules.h"
#include "schedule/training.h"
#include "schedule/verification.h"

namespace tenon {
namespace unseen_keys_test {

constexpr double kHidden = -HUGE_VAL;
constexpr std::int64_t kWidth = 8;
constexpr const char* kNote =
    "a query that the mask shows no key gets zeros of attention, where the model's softmax gives "
    "NaN";

/// How a mask input becomes part of attention, and of a softmax written out.
struct MaskKind {
  const char* name;
  TensorOptions options;
  std::function<Tensor(const Tensor& scores, const Tensor& mask)> hide;
  std::function<Tensor(const Tensor& mask)> for_attention;
};

const MaskKind kKinds[] = {
    {"bool, true where hidden",
     {DType::boolean, kCpu},
     [](const Tensor& s, const Tensor& m) { return masked_fill(s, m, kHidden); },
     [](const Tensor& m) { return eq(m, 0); }},
    {"bool, true where seen",
     {DType::boolean, kCpu},
     [](const Tensor& s, const Tensor& m) { return masked_fill(s, eq(m, 0), kHidden); },
     [](const Tensor& m) { return m; }},
    {"additive",
     {DType::float32, kCpu},
     [](const Tensor& s, const Tensor& m) { return s + m; },
     [](const Tensor& m) { return m; }},
    {"a view of an additive one",
     {DType::float32, kCpu},
     [](const Tensor& s, const Tensor& m) { return s + unsqueeze(m, 0); },
     [](const Tensor& m) { return unsqueeze(m, 0); }},
    {"integers, 0 where hidden",
     {DType::int64, kCpu},
     [](const Tensor& s, const Tensor& m) { return masked_fill(s, eq(m, 0), kHidden); },
     [](const Tensor& m) { return ne(m, 0); }},
};

Tensor by_softmax(const MaskKind& kind, const Tensor& x, const Tensor& mask) {
  return matmul(softmax(kind.hide(matmul(x, x.transpose(-2, -1)) * 0.5, mask), -1), x);
}
Tensor attention(const Tensor& x, const Tensor& mask) {
  return scaled_dot_product_attention(x, x, x, mask, {.scale = 0.5});
}
Tensor by_attention(const MaskKind& kind, const Tensor& x, const Tensor& mask) {
  return attention(x, kind.for_attention(mask));
}
using Form = Tensor (*)(const MaskKind&, const Tensor&, const Tensor&);

struct Model : nn::Module {
  Model(const MaskKind& k, Form f)
      : kind(k),
        form(f),
        in(add<nn::Linear>("in", kWidth, kWidth)),
        out(add<nn::Linear>("out", kWidth, kWidth)) {}
  Tensor forward(const Tensor& x, const Tensor& mask) const {
    return out(form(kind, in(x), mask)) + x;
  }
  const MaskKind& kind;
  Form form;
  nn::Child<nn::Linear> in, out;
};

Schedule schedule_of(const nn::Child<Model>& model) {
  return create_schedule(
      model, {{"x", randn({2, 5, kWidth})}, {"mask", zeros({5, 5}, model->kind.options)}});
}

void replace(Schedule& sch, const MaskKind& kind, Form from, Form to) {
  sch.replace(
      [&kind, to](const Tensor& x, const Tensor& m) { return to(kind, x, m); },
      sch.find([&kind, from](const Tensor& x, const Tensor& m) { return from(kind, x, m); }));
}

/// Query 1 sees no key, the others all.
Tensor mask_of(const MaskKind& kind) {
  const bool inverted = kind.hide(zeros({1, 1}), zeros({1, 1}, kind.options)).item() == 0;
  std::vector<double> values;
  for (int i = 0; i < 25; ++i) {
    const bool hidden = i / 5 == 1;
    const bool is_floating_mask = kind.options.dtype == DType::float32;
    values.push_back(is_floating_mask ? (hidden ? kHidden : 0) : hidden == inverted ? 1 : 0);
  }
  return tensor(values, {5, 5}, kind.options);
}

bool is_finite(const Tensor& tensor) {
  for (const double value : tensor.to_doubles()) {
    if (!std::isfinite(value)) return false;
  }
  return true;
}

TEST(UnseenKeys, AttentionForASoftmaxGivesZerosAndTheReportsSaySo) {
  for (const MaskKind& kind : kKinds) {
    SCOPED_TRACE(kind.name);
    const auto model = nn::make<Model>(kind, by_softmax);
    Schedule sch = schedule_of(model);
    replace(sch, kind, by_softmax, by_attention);
    const VerifyReport verified = verify(sch);
    EXPECT_TRUE(verified.ok()) << verified.to_string();
    EXPECT_EQ(verified.notes, std::vector<std::string>{kNote});
    EXPECT_NE(verified.to_string().find(std::string("note: ") + kNote), std::string::npos);

    const ScheduleReport table = report(sch, {.runs = 1});
    EXPECT_EQ(table.rows.at(0).note, "");
    EXPECT_EQ(table.rows.at(1).note, kNote);
    EXPECT_NE(table.to_string().find(kNote), std::string::npos);
    EXPECT_EQ(nlohmann::ordered_json(table).at(1).at("note"), kNote);

    const Tensor x = randn({2, 5, kWidth});
    EXPECT_FALSE(is_finite(model(x, mask_of(kind))));
    Executor run = build(sch);
    const Tensor y = run(x, mask_of(kind));
    EXPECT_TRUE(is_finite(y));
    const Tensor rest = y.narrow(1, 1, 1) - x.narrow(1, 1, 1);  // the bias alone
    const auto bias = model->out->bias.to_doubles();
    for (std::size_t i = 0; i < 2 * kWidth; ++i) {
      EXPECT_NEAR(rest.to_doubles()[i], bias[i % kWidth], 1e-6);
    }
  }
}

TEST(UnseenKeys, ReadyMadeSchedulesSaySoToo) {
  for (const int i : {0, 2}) {
    const auto model = nn::make<Model>(kKinds[i], by_softmax);
    Schedule sch = schedule_of(model);
    schedules::attention(sch);
    const VerifyReport verified = verify(sch);
    EXPECT_TRUE(verified.ok()) << kKinds[i].name << "\n" << verified.to_string();
    EXPECT_EQ(verified.notes.size(), 1U) << kKinds[i].name;
  }
}

TEST(UnseenKeys, AWrongRewriteIsNotExcusedByThem) {
  const MaskKind& kind = kKinds[0];
  Schedule sch = schedule_of(nn::make<Model>(kind, by_softmax));
  sch.replace(
      [](const Tensor& x, const Tensor& m) {
        // A query that should see no key sees all.
        const Tensor seen = cast(eq(m, 0), DType::float32);
        const Tensor none = cast(eq(sum(seen, {1}, true), 0), DType::float32);
        return scaled_dot_product_attention(x, x, x, gt(seen + none, 0), {.scale = 0.5});
      },
      sch.find([&](const Tensor& x, const Tensor& m) { return by_softmax(kind, x, m); }));
  EXPECT_FALSE(verify(sch).ok());
}

TEST(UnseenKeys, ASoftmaxForAttentionIsRefused) {
  for (const MaskKind& kind : kKinds) {
    SCOPED_TRACE(kind.name);
    Schedule sch = schedule_of(nn::make<Model>(kind, by_attention));
    EXPECT_TRUE(verify(sch).ok()) << verify(sch).to_string();
    replace(sch, kind, by_attention, by_softmax);
    const VerifyReport verified = verify(sch);
    EXPECT_FALSE(verified.ok()) << verified.to_string();
    EXPECT_TRUE(verified.notes.empty());
    EXPECT_THROW(build(sch), VerificationError);
  }
}

TEST(UnseenKeys, DecomposedAttentionKeepsItsZeros) {
  for (const MaskKind& kind : kKinds) {
    SCOPED_TRACE(kind.name);
    const auto model = nn::make<Model>(kind, by_attention);
    Schedule sch = schedule_of(model);
    sch.decompose(sch.find(attention));
    const VerifyReport verified = verify(sch);
    EXPECT_TRUE(verified.ok()) << verified.to_string();
    EXPECT_TRUE(verified.notes.empty());
    Executor run = build(sch);
    const Tensor x = randn({2, 5, kWidth});
    const Tensor y = run(x, mask_of(kind));
    EXPECT_TRUE(is_finite(y));
    EXPECT_LT(amax(abs(y - model(x, mask_of(kind)))).item(), 1e-5);
  }
}

TEST(UnseenKeys, TrainingProgramsKeepWeightsFinite) {
  for (const MaskKind& kind : kKinds) {
    for (const bool decomposed : {false, true}) {
      SCOPED_TRACE(kind.name);
      const auto model = nn::make<Model>(kind, by_attention);
      Schedule sch = schedule_of(model);
      if (decomposed) sch.decompose(sch.find(attention));
      TrainingStep step =
          build_training(sch, {.loss = [](auto outputs, auto) { return mean(square(outputs[0])); },
                               .optimizer = std::make_shared<nn::SGD>(model->named_parameters(),
                                                                      nn::SgdOptions{.lr = 0.1})});
      EXPECT_TRUE(is_finite(step.run({randn({2, 5, kWidth}), mask_of(kind)}).loss));
      for (const auto& [name, parameter] : model->named_parameters()) {
        EXPECT_TRUE(is_finite(parameter)) << name;
      }
    }
  }
}

}  // namespace unseen_keys_test
}  // namespace tenon
