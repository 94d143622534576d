// Gated activations and rotary positions as a model writes them down: ready-made schedules put one op in
// their place, and leave alone what only looks like them.
#include <gtest/gtest.h>

#include "nn/nn.h"
#include "schedule/schedules.h"
#include "tests/support/count_nodes.h"
#include "tests/support/schedule_checks.h"

namespace tenon::test {
namespace gates_and_rotations_test {

constexpr std::int64_t kWidth = 8;

/// A function of x (B, S, 8), cos and sin (S, 8).
using Rotation = Tensor (*)(const Tensor& x, const Tensor& cos, const Tensor& sin);

struct Spelling {
  const char* name;
  Rotation rotate;
  bool recognized;
};

std::ostream& operator<<(std::ostream& stream, const Spelling& s) { return stream << s.name; }

struct Model : nn::Module {
  explicit Model(Rotation how)
      : a(add<nn::Linear>("a", kWidth, kWidth)),
        b(add<nn::Linear>("b", kWidth, kWidth)),
        rotate(how) {}
  Tensor forward(const Tensor& x, const Tensor& cos, const Tensor& sin) const {
    return b(tanh(rotate(tanh(a(x)), cos, sin)));
  }
  nn::Child<nn::Linear> a, b;
  Rotation rotate;
};

Tensor halves_turned(const Tensor& x, std::int64_t first, std::int64_t width, bool negate_first) {
  const Tensor p = x.narrow(-1, 0, first), q = x.narrow(-1, width - first, first);
  return negate_first ? cat({q, neg(p)}, -1) : cat({neg(q), p}, -1);
}

class Rotations : public ::testing::TestWithParam<Spelling> {};

TEST_P(Rotations, BecomeOneOp) {
  const auto model = initialized<Model>(GetParam().rotate);
  model->requires_grad_();
  const std::vector<Tensor> inputs = {randn({2, 5, kWidth}), randn({5, kWidth}),
                                      randn({5, kWidth})};
  Schedule sch = create_schedule(model, {{"x", inputs[0]}, {"cos", inputs[1]}, {"sin", inputs[2]}});
  if (!GetParam().recognized) {
    EXPECT_THROW(schedules::gpt(sch), ScheduleError);
    EXPECT_EQ(count_nodes(sch.graph(), "rotary_embedding"), 0);
    return;
  }
  EXPECT_EQ(schedules::gpt(sch).rewritten, 1);
  EXPECT_EQ(count_nodes(sch.graph(), "rotary_embedding"), 1);
  for (const char* op : {"narrow", "neg", "cat", "mul", "add"}) {
    EXPECT_EQ(count_nodes(sch.graph(), op), 0) << op;
  }
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  expect_same_step(program_step(sch, inputs), eager_step(model, inputs), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Spellings, Rotations,
    ::testing::Values(
        Spelling{"Chunk",
                 [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
                   const auto halves = chunk(x, 2, -1);
                   return x * cos + cat({neg(halves[1]), halves[0]}, -1) * sin;
                 },
                 true},
        Spelling{"OtherOrder",
                 [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
                   return sin * halves_turned(x, 4, 8, false) + cos * x;
                 },
                 true},
        Spelling{"OtherSign",
                 [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
                   return x * cos + halves_turned(x, 4, 8, true) * sin;
                 },
                 false},
        Spelling{"UnevenPieces",
                 [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
                   const Tensor turned = cat({neg(x.narrow(-1, 2, 6)), x.narrow(-1, 0, 2)}, -1);
                   return x * cos + turned * sin;
                 },
                 false},
        Spelling{"OverlappingPieces",
                 [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
                   const Tensor turned = cat({neg(x.narrow(-1, 3, 4)), x.narrow(-1, 0, 4)}, -1);
                   return x * cos + turned * sin;
                 },
                 false},
        Spelling{"AnotherTensorTurned",
                 [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
                   return x * cos + halves_turned(x * 2.0, 4, 8, false) * sin;
                 },
                 false},
        Spelling{"Subtracted",
                 [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
                   return x * cos - halves_turned(x, 4, 8, false) * sin;
                 },
                 false},
        Spelling{"ATableLargerThanX",
                 [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
                   const Tensor y = sum(x, {0}, true).narrow(1, 0, 1);
                   return x + (y * cos + halves_turned(y, 4, 8, false) * sin);
                 },
                 false}),
    [](const auto& info) { return info.param.name; });

struct Gated : nn::Module {
  explicit Gated(bool repeats)
      : gate(add<nn::Linear>("gate", kWidth, 16)),
        up(add<nn::Linear>("up", kWidth, repeats ? 1 : 16)),
        down(add<nn::Linear>("down", 16, kWidth)) {}
  Tensor forward(const Tensor& x) const { return down(up(x) * silu(gate(x))); }
  nn::Child<nn::Linear> gate, up, down;
};

TEST(Gates, BecomeOneOpUnlessOneSideIsRepeated) {
  for (const bool repeats : {false, true}) {
    const auto model = initialized<Gated>(repeats);
    model->requires_grad_();
    const Tensor x = randn({2, 5, kWidth});
    Schedule sch = create_schedule(model, {{"x", x}});
    schedules::gpt(sch);
    EXPECT_EQ(count_nodes(sch.graph(), "silu_mul"), repeats ? 0 : 1);
    EXPECT_EQ(count_nodes(sch.graph(), "silu"), repeats ? 1 : 0);
    const VerifyReport report = verify(sch);
    EXPECT_TRUE(report.ok()) << report.to_string();
    expect_same_step(program_step(sch, {x}), eager_step(model, {x}), 1e-5);
  }
}

}  // namespace gates_and_rotations_test
}  // namespace tenon::test
