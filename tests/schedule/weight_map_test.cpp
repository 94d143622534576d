// Weight maps: expressions of the model's parameters, packed so that a run copies nothing.
#include "schedule/weight_map.h"

#include <gtest/gtest.h>

#include "schedule/schedule.h"
#include "schedule/verification.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

constexpr std::int64_t kIn = 6;
constexpr std::int64_t kOut = 4;

/// Three products of one input, weights (out, in).
struct Branches : nn::Module {
  Branches()
      : a(add<nn::Linear>("a", kIn, kOut)),
        b(add<nn::Linear>("b", kIn, kOut)),
        c(add<nn::Linear>("c", kIn, kOut)) {}
  std::vector<Tensor> forward(const Tensor& x) const { return {a(x), b(x), c(x)}; }
  nn::Child<nn::Linear> a, b, c;
};

/// One product whose weight has any layout; `unpack` makes an (out, in) weight of it.
struct Joined : nn::Module {
  using Unpack = Tensor (*)(const Tensor& weight);
  Joined(const Shape& shape, Unpack f)
      : weight(register_parameter("weight", zeros(shape))),
        bias(register_parameter("bias", zeros({3 * kOut}))),
        unpack(f) {}
  std::vector<Tensor> forward(const Tensor& x) const {
    return chunk(linear(x, unpack(weight), bias), 3, -1);
  }
  Tensor weight, bias;
  Unpack unpack;
};

struct LayoutCase {
  const char* name;
  Shape shape;
  WeightSource weight;
  Joined::Unpack unpack;
  bool packed;  // no copy at run time
};

std::ostream& operator<<(std::ostream& stream, const LayoutCase& c) { return stream << c.name; }

WeightSource transposed(const char* name) { return transpose(name, 0, 1); }
/// (out, in) -> (out, 1, in): one of three, interleaved by output.
WeightSource spread(const char* name) { return reshape(name, {kOut, 1, kIn}); }

class WeightLayouts : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(WeightLayouts, EqualTheModelWithoutACopyAtRunTime) {
  const LayoutCase& c = GetParam();
  const auto model = nn::make<Branches>();
  Schedule sch = create_schedule(model, {{"x", randn({5, kIn})}});
  const Matches branches = sch.find([](const Tensor& x) { return call_module("[abc]", x); });
  sch.replace(nn::make<Joined>(c.shape, c.unpack), branches,
              {.weights = {{"weight", c.weight}, {"bias", cat("a.bias", "b.bias", "c.bias")}}});
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();

  const std::vector<float> before = model->parameter("b.weight").to_vector<float>();
  Executor run = build(sch);
  EXPECT_EQ(model->parameter("b.weight").contiguous().to_vector<float>(), before);
  const Tensor x = randn({3, kIn});
  const auto expected = model.call(std::vector{x});
  const auto given = run.run(std::vector{x});
  for (int i = 0; i < 3; ++i) EXPECT_LT(test::max_difference(given[i], expected[i]), 1e-5) << i;
  for (const InstructionInfo& info : run.program(std::vector{x}).instructions()) {
    EXPECT_EQ(info.kernel.find("cat") != std::string::npos, !c.packed) << info.kernel;
  }
  // What is loaded under the old names is what the joined product reads.
  const auto fresh_model = nn::make<Branches>();
  model->load_state_dict(fresh_model->state_dict());
  EXPECT_LT(test::max_difference(run.run(std::vector{x})[1], fresh_model.call(std::vector{x})[1]),
            1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, WeightLayouts,
    ::testing::Values(
        LayoutCase{"Rows",
                   {3 * kOut, kIn},
                   cat("a.weight", "b.weight", "c.weight"),
                   [](const Tensor& w) { return w; },
                   true},
        LayoutCase{"Columns",
                   {kIn, 3 * kOut},
                   cat({transposed("a.weight"), transposed("b.weight"), transposed("c.weight")}, 1),
                   [](const Tensor& w) { return w.transpose(0, 1); },
                   true},
        LayoutCase{"TransposedJoin",
                   {kIn, 3 * kOut},
                   transpose(cat("a.weight", "b.weight", "c.weight"), 0, 1),
                   [](const Tensor& w) { return w.transpose(0, 1); },
                   true},
        LayoutCase{"Interleaved",
                   {kOut * 3, kIn},
                   reshape(cat({spread("a.weight"), spread("b.weight"), spread("c.weight")}, 1),
                           {3 * kOut, kIn}),
                   [](const Tensor& w) {
                     return w.view({kOut, 3, kIn}).transpose(0, 1).reshape({3 * kOut, kIn});
                   },
                   true}),
    [](const auto& info) { return info.param.name; });

/// One weight that the new module holds in parts.
TEST(WeightMaps, SplitAndNarrowTakeOneParameterApart) {
  struct Whole : nn::Module {
    Whole() : qkv(add<nn::Linear>("qkv", kIn, 3 * kOut)) {}
    Tensor forward(const Tensor& x) const { return qkv(x); }
    nn::Child<nn::Linear> qkv;
  };
  struct Parts : nn::Module {
    Parts()
        : q(add<nn::Linear>("q", kIn, kOut)),
          k(add<nn::Linear>("k", kIn, kOut)),
          v(add<nn::Linear>("v", kIn, kOut)) {}
    Tensor forward(const Tensor& x) const { return cat({q(x), k(x), v(x)}, -1); }
    nn::Child<nn::Linear> q, k, v;
  };
  const auto model = nn::make<Whole>();
  Schedule sch = create_schedule(model, {{"x", randn({5, kIn})}});
  sch["qkv"].replace(nn::make<Parts>(),
                     {.weights = {{"q.weight", split("weight", 3, 0)},
                                  {"k.weight", split("weight", 3, 1)},
                                  {"v.weight", narrow("weight", 0, 2 * kOut, kOut)},
                                  {"q.bias", split("bias", 3, 0)},
                                  {"k.bias", split("qkv.bias", 3, 1)},
                                  {"v.bias", split("bias", 3, 2)}}});
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  const Tensor x = randn({3, kIn});
  EXPECT_LT(test::max_difference(build(sch)(x), model(x)), 1e-5);
}

TEST(WeightMaps, Refusals) {
  const auto attempt = [](const WeightMap& weights) {
    return test::error_text<ScheduleError>([&] {
      Schedule sch = create_schedule(nn::make<Branches>(), {{"x", randn({5, kIn})}});
      const Matches branches = sch.find([](const Tensor& x) { return call_module("[abc]", x); });
      const auto identity = [](const Tensor& w) { return w; };
      sch.replace(nn::make<Joined>(Shape{3 * kOut, kIn}, identity), branches, {.weights = weights});
    });
  };
  const auto bias = cat("a.bias", "b.bias", "c.bias");
  EXPECT_EQ(attempt({{"weight", cat("a.weight", "b.weight", "d.weight")}, {"bias", bias}}),
            "replace refused: weights: the replaced nodes read no parameter 'd.weight' (a source "
            "of 'weight' of Joined), and the model has none of that whole name; they read "
            "a.weight, a.bias, b.weight, b.bias, c.weight, c.bias");
  EXPECT_EQ(attempt({{"weight", cat("a.weight", "b.weight")}, {"bias", bias}}),
            "replace refused: parameter 'weight' of Joined is float32(12, 6); its sources make "
            "float32(8, 6)");
  EXPECT_NE(
      attempt({{"weight", cat("a.weight", "b.bias", "c.weight")}, {"bias", bias}})
          .find("weights: 'weight' of Joined cannot be cat(a.weight, b.bias, c.weight): [cat]"),
      std::string::npos);
  EXPECT_NE(attempt({{"weight", split("a.weight", 3, 0)}, {"bias", bias}})
                .find("does not split into 3 equal pieces"),
            std::string::npos);
  EXPECT_NE(attempt({{"weight", "weight"}, {"bias", bias}})
                .find("'weight' could be %a.weight or %b.weight; write the whole name"),
            std::string::npos);
  EXPECT_ERROR(ScheduleError, "weights: split() asks for piece 3 of 3", split("w", 3, 3));
  EXPECT_ERROR(ScheduleError, "weights: fresh() stands for a whole parameter", cat(fresh(), "w"));
}

}  // namespace
}  // namespace tenon
