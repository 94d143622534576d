// Schedules as data: saved, replayed on another model of the same structure, and refused elsewhere.
#include "schedule/schedule_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "examples/attention_model.h"
#include "schedule/verification.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace schedule_json_test {

using nlohmann::json;
using test::max_difference;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 2;

Tensor tail(const Tensor& x, const Tensor& bias, const Tensor& residual, const Tensor& weight,
            const Tensor& norm_bias) {
  return layer_norm(dropout(x + bias, 0.1) + residual, weight, norm_bias);
}

template <class Model>
Schedule schedule_of(const Model& model) {
  return create_schedule(model, {{"hidden_states", randn({2, 5, kHidden})}});
}

/// Every primitive that changes a Graph, on the tutorial's block.
void apply_everything(Schedule& sch) {
  sch.annotate("self_attn.q_proj.weight", "placement", "packed");
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
  sch["proj"]["dense"].decompose();
  sch["proj"].trace({.flatten = true});
  sch["proj"].fuse(sch["proj"].find(tail), {.name = "FusedLayerNorm"});
  sch["self_attn"].checkpoint();
  sch.bind(sch["proj"].find([](const Tensor& x, const Tensor& w) { return linear(x, w); }),
           "cpu.gemm");
}

TEST(ScheduleJson, ReplaysOnAModelWithOtherWeights) {
  const auto model = nn::make<tutorial::Attention>(kHidden, kHeads);
  Schedule sch = schedule_of(model);
  apply_everything(sch);
  const std::string text = save_schedule(sch);

  const auto other = nn::make<tutorial::Attention>(kHidden, kHeads);
  Schedule replayed = schedule_of(other);
  load_schedule(replayed, text);
  EXPECT_EQ(to_text(replayed.graph()), to_text(sch.graph()));
  EXPECT_EQ(replayed.to_string(), sch.to_string());
  EXPECT_EQ(list_steps(replayed), list_steps(sch));
  EXPECT_EQ(replayed.annotation("self_attn.q_proj.weight", "placement"), "packed");
  EXPECT_EQ(save_schedule(replayed), text);
  const VerifyReport report = verify(replayed);
  EXPECT_TRUE(report.ok()) << report.to_string();
  other->eval();
  const Tensor x = randn({3, 7, kHidden});
  EXPECT_LT(max_difference(build(replayed)(x), other(x)), 2e-5);
}

TEST(ScheduleJson, ReplaysInAnotherDtypeAndAfterAnUndo) {
  Schedule sch = schedule_of(nn::make<tutorial::Attention>(kHidden, kHeads));
  apply_everything(sch);
  sch.undo();
  const auto wide = nn::make<tutorial::Attention>(kHidden, kHeads);
  wide->to(DType::float64);
  Schedule replayed =
      create_schedule(wide, {{"hidden_states", TensorSpec{DType::float64, {4, 9, kHidden}, kCpu}}});
  load_schedule(replayed, save_schedule(sch));
  EXPECT_EQ(replayed.applied().size(), sch.applied().size());
  EXPECT_TRUE(verify(replayed).ok());
}

TEST(ScheduleJson, FreshParametersAndConstantsTravelWithTheirValues) {
  struct Scaled : nn::Module {
    Scaled() : gain(register_parameter("gain", ones({kHidden}))) {}
    Tensor forward(const Tensor& x) const { return relu(x * gain) + tensor({0.0}, {1}); }
    Tensor gain;
  };
  struct Model : nn::Module {
    Model() : dense(add<nn::Linear>("dense", kHidden, kHidden)) {}
    Tensor forward(const Tensor& x) const { return relu(dense(x)); }
    nn::Child<nn::Linear> dense;
  };
  const auto make = [] { return nn::make<Model>(); };
  Schedule sch = create_schedule(make(), {randn({3, kHidden})});
  sch.replace(nn::make<Scaled>(), sch.find([](const Tensor& x) { return relu(x); }),
              {.weights = {{"gain", fresh()}}});
  ASSERT_EQ(sch.added_parameters().size(), 1U);
  Schedule replayed = create_schedule(make(), {randn({3, kHidden})});
  load_schedule(replayed, save_schedule(sch));
  ASSERT_EQ(replayed.added_parameters().size(), 1U);
  EXPECT_EQ(replayed.added_parameters()[0].first, sch.added_parameters()[0].first);
  EXPECT_EQ(replayed.added_parameters()[0].second.to_vector<float>(),
            std::vector<float>(kHidden, 1.0F));
  EXPECT_TRUE(replayed.added_parameters()[0].second.requires_grad());
}

TEST(ScheduleJson, AnotherStructureIsRefusedByItsFirstDifference) {
  Schedule sch = schedule_of(nn::make<tutorial::Attention>(kHidden, kHeads));
  apply_everything(sch);
  const std::string text = save_schedule(sch);
  Schedule wider = create_schedule(nn::make<tutorial::Attention>(kHidden, 4),
                                   {{"hidden_states", randn({2, 5, kHidden})}});
  const std::string before = to_text(wider.graph());
  EXPECT_ERROR(ScheduleError,
               "load_schedule: the schedule was made for a model of another structure; the first "
               "difference: it has `self_attn.view = view(%self_attn.q_proj, shape=(s0, s1, 2, 8)) "
               "(s0, s1, 2, 8)`, this model `self_attn.view = view(%self_attn.q_proj, shape=(s0, "
               "s1, 4, 4)) (s0, s1, 4, 4)`",
               load_schedule(wider, text));
  EXPECT_EQ(to_text(wider.graph()), before);
}

TEST(ScheduleJson, LoadsIntoAFreshScheduleOnly) {
  Schedule sch = schedule_of(nn::make<tutorial::Attention>(kHidden, kHeads));
  sch["proj"]["dense"].decompose();
  const std::string text = save_schedule(sch);
  EXPECT_ERROR(ScheduleError,
               "load_schedule: 1 primitives were applied to this schedule already; load into a "
               "fresh one",
               load_schedule(sch, text));
}

struct BadText {
  const char* name;
  void (*spoil)(json&);
  const char* message;
};

class BadSchedule : public ::testing::TestWithParam<BadText> {};

TEST_P(BadSchedule, IsRefusedAndChangesNothing) {
  Schedule sch = schedule_of(nn::make<tutorial::Attention>(kHidden, kHeads));
  apply_everything(sch);
  json root = json::parse(save_schedule(sch));
  GetParam().spoil(root);
  Schedule other = schedule_of(nn::make<tutorial::Attention>(kHidden, kHeads));
  const std::string before = to_text(other.graph());
  const std::string message =
      test::error_text<ScheduleError>([&] { load_schedule(other, root.dump()); });
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
  EXPECT_EQ(to_text(other.graph()), before);
  EXPECT_TRUE(other.applied().empty());
}

/// The first new node of the second step (the fused QKV's).
json& first_node(json& root) { return root["steps"][1]["edit"]["nodes"][0]; }

INSTANTIATE_TEST_SUITE_P(
    Texts, BadSchedule,
    ::testing::Values(
        BadText{"Format", [](json& root) { root["format"] = "other"; }, "this is no schedule"},
        BadText{"Version", [](json& root) { root["version"] = 2; }, "version 2 is not known"},
        BadText{"NoSteps", [](json& root) { root.erase("steps"); }, "a part is missing"},
        BadText{"NoOp", [](json& root) { first_node(root)["op"] = "no_such_op"; }, "no_such_op"},
        BadText{"WrongType", [](json& root) { first_node(root)["op"] = 7; }, "another type"},
        BadText{"NoValue", [](json& root) { first_node(root)["inputs"][0] = "n9999"; },
                "there is no node 9999"},
        BadText{"NoState", [](json& root) { first_node(root)["inputs"][0] = "%nobody"; },
                "there is no state %nobody"},
        BadText{"WrongOperand", [](json& root) { first_node(root)["inputs"][0] = "i0"; }, "[cat]"},
        BadText{"UnknownAttributes",
                [](json& root) { first_node(root)["attrs"]["type"] = "NobodyAttrs"; },
                "no op has attributes called 'NobodyAttrs'"},
        BadText{"StructureLine", [](json& root) { root["structure"][0] = "input x(3)"; },
                "it has `input x(3)`, this model `input hidden_states(s0, s1, 16)`"}),
    [](const auto& info) { return info.param.name; });

TEST(ScheduleJson, TextThatIsNoJsonIsRefusedWithItsPlace) {
  Schedule sch = schedule_of(nn::make<tutorial::Attention>(kHidden, kHeads));
  for (const char* text : {"", "{", "{\"format\": 1, \"format\": 2}", "[1, 2", "nonsense"}) {
    EXPECT_THROW(load_schedule(sch, text), ScheduleError) << text;
  }
  EXPECT_THROW(load_schedule(sch, std::string(100000, '[')), ScheduleError);
}

}  // namespace schedule_json_test
}  // namespace tenon
