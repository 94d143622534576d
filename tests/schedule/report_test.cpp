// The table per primitive: its figures, its failures, and both of its forms.
#include "schedule/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "examples/attention_model.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 2;

Schedule tutorial_schedule() {
  const auto model = nn::make<tutorial::Attention>(kHidden, kHeads);
  Schedule sch = create_schedule(model, {{"hidden_states", randn({2, 5, kHidden})}});
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
  return sch;
}

TEST(Report, OneRowForTheModelAndEachPrimitive) {
  const Schedule sch = tutorial_schedule();
  const ScheduleReport r = report(sch, {.sizes = {{3, 33, kHidden}}, .runs = 3});
  ASSERT_EQ(r.rows.size(), 3U);
  EXPECT_EQ(r.sizes, (std::vector<std::vector<std::int64_t>>{{3, 33, kHidden}}));
  EXPECT_EQ(r.rows[0].primitive, "traced");
  EXPECT_EQ(r.rows[0].nodes, sch.original().order().size());
  EXPECT_EQ(r.rows[2].nodes, sch.graph().order().size());
  EXPECT_EQ(r.rows[0].max_error, 0);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(r.rows[i].failure, "");
    EXPECT_GT(r.rows[i].milliseconds, 0);
    EXPECT_LT(r.rows[i].max_error, 1e-5);
    if (i == 0) continue;
    EXPECT_LT(r.rows[i].kernels, r.rows[i - 1].kernels);
    EXPECT_LT(r.rows[i].bytes_moved, r.rows[i - 1].bytes_moved);
  }
  EXPECT_LT(r.rows[2].arena_bytes, r.rows[0].arena_bytes);
}

TEST(Report, BytesAreThoseOfOperandsAndResults) {
  const auto model =
      test::function_model([](const Tensor& x) { return relu(x) + sum(x, {0}, true); });
  const ScheduleReport r = report(create_schedule(model, {randn({4, 8})}), {.runs = 1});
  // relu reads and writes 32 floats, the sum reads 32 and writes 8, the addition reads both.
  EXPECT_EQ(r.rows.at(0).bytes_moved, 4 * ((32 + 32) + (32 + 8) + (32 + 8 + 32)));
  EXPECT_EQ(r.rows[0].kernels, 3);
}

TEST(Report, TrainingShowsWhatCheckpointSaves) {
  const auto model = nn::make<test::Stack<test::ResidualMlp>>(4, 32);
  Schedule sch = create_schedule(model, {randn({8, 32})});
  for (int i = 0; i < 4; ++i) sch["layer." + std::to_string(i)].checkpoint();
  const ScheduleReport r = report(sch, {.training = true, .runs = 1});
  ASSERT_EQ(r.rows.size(), 5U);
  EXPECT_LT(r.rows[4].arena_bytes, r.rows[0].arena_bytes);
  EXPECT_GT(r.rows[4].nodes, r.rows[0].nodes);
  EXPECT_EQ(r.rows[4].max_error, 0);
}

TEST(Report, AWrongPrimitiveShowsItsErrorAndNaNIsAnInfiniteOne) {
  const auto model = test::function_model([](const Tensor& x) { return relu(x); });
  Schedule sch = create_schedule(model, {randn({3})});
  const auto last = [&](const Tensor& input) {
    return report(sch, {.inputs = {input}, .runs = 1}).rows.back().max_error;
  };
  sch.replace([](const Tensor& x) { return relu(x) + 0.5; },
              sch.find([](const Tensor& x) { return relu(x); }));
  EXPECT_DOUBLE_EQ(last(ones({3})), 0.5);
  sch.replace([](const Tensor& x) { return log(-x); },
              sch.find([](const Tensor& x) { return x + 0.5; }));
  EXPECT_EQ(last(ones({3})), HUGE_VAL);
}

TEST(Report, ChangesNeitherStateNorGenerator) {
  const Schedule sch = tutorial_schedule();
  manual_seed(5);
  const Tensor expected = randn({4});
  manual_seed(5);
  report(sch, {.training = true, .runs = 1});
  EXPECT_EQ(randn({4}).to_doubles(), expected.to_doubles());
}

TEST(Report, AsText) {
  ScheduleReport r;
  r.sizes = {{8, 128, 128}};
  r.rows.push_back({"traced", "", 25, 25, 34.5e6, 12000000, 1.25, 0, ""});
  r.rows.push_back({"replace", "self_attn", 21, 4, 1e6, 500000, 0.125, 2.5e-7, ""});
  r.rows.push_back({"bind", "", 21, 0, 0, 0, 0, 0, "no such kernel here"});
  EXPECT_EQ("\n" + r.to_string(), R"(
forward in eval mode on inputs (8, 128, 128)
    primitive               nodes  kernels   MB moved   MB arena         ms   max error
 0. traced                     25       25      34.50      12.00     1.2500           0
 1. replace on 'self_attn'     21        4       1.00       0.50     0.1250     2.5e-07
 2. bind                       21 cannot run alone: no such kernel here
)");
}

TEST(Report, AsJson) {
  ScheduleReport r;
  r.rows.push_back({"traced", "", 2, 3, 64, 256, 0.5, HUGE_VAL, ""});
  r.rows.push_back({"bind", "a", 2, 0, 0, 0, 0, 0, "no such kernel here"});
  const nlohmann::ordered_json json = r;
  EXPECT_EQ(json.dump(),
            R"([{"primitive":"traced","path":"","nodes":2,"kernels":3,"bytes_moved":64.0,)"
            R"("arena_bytes":256,"ms":0.5,"max_error":null},)"
            R"({"primitive":"bind","path":"a","nodes":2,"kernels":0,"bytes_moved":0.0,)"
            R"("arena_bytes":0,"ms":0.0,"max_error":0.0,"failure":"no such kernel here"}])");
}

TEST(Report, InputsThatDoNotFitAreRefused) {
  const Schedule sch = tutorial_schedule();
  EXPECT_ERROR(ShapeError, "[report] sizes of 2 inputs were given; the model takes 1",
               report(sch, {.sizes = {{1, 2, kHidden}, {3}}}));
  EXPECT_ERROR(ShapeError, "[lower] 2 inputs were given; the graph has 1",
               report(sch, {.inputs = {ones({1, 2, kHidden}), ones({1})}}));
}

}  // namespace
}  // namespace tenon
