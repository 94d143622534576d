// DESIGN section 3, contracts 7 to 10: the functional Graph and its state, the mode as a symbol,
// schedules that never touch the model, parameters that stay the model's.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "examples/attention_model.h"
#include "nn/sgd.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "schedule/verification.h"
#include "tensor/random.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace state_contracts_test {

using test::function_model;
using test::max_difference;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kHeads = 2;

struct Scheduled : ::testing::Test {
  void SetUp() override { manual_seed(20261122); }
  void TearDown() override { manual_seed(0); }
  void fuse_qkv() {
    sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
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

TEST_F(Contract3_8, AFrozenNormNormalizesByItsRunningStatisticsInATrainingStep) {
  struct Model : nn::Module {
    Tensor forward(const Tensor& images) const { return norm(images); }
    nn::Child<nn::BatchNorm2d> norm = add<nn::BatchNorm2d>("norm", 2);
  };
  const auto frozen = nn::make<Model>();
  frozen->norm->eval();
  const Tensor images = randn({2, 2, 3, 3}) + 3.0;
  const TrainingOptions options{.loss = [](auto outputs, auto) { return sum(square(outputs[0])); }};
  TrainingStep step = build_training(create_schedule(frozen, {images}), options);
  EXPECT_LT(max_difference(step.run({images}).loss, sum(square(frozen(images)))), 1e-3);
  EXPECT_EQ(max_difference(frozen->norm->running_mean, zeros({2})), 0);
  frozen->norm->train();
  EXPECT_THROW(step.run({images}), StaleProgram);
}

TEST_F(Contract3_9, ARefusedPrimitiveLeavesTheGraphByteEqualAndTheModelIsNeverTouched) {
  const std::string graph = to_text(sch.graph());
  std::vector<std::vector<float>> values;
  for (const auto& [name, tensor] : model->named_parameters())
    values.push_back(tensor.to_vector<float>());
  EXPECT_THROW(sch.replace(nn::make<tutorial::FusedQKV>(kHidden + 2, kHeads),
                           sch.find(test::qkv_pattern(kHeads))),
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

/// One product for two projections.
struct FusedPair : nn::Module {
  FusedPair() : fused(add<nn::Linear>("fused", kHidden, 2 * kHidden)) {}
  std::vector<Tensor> forward(const Tensor& y) const { return chunk(fused(y), 2, -1); }
  nn::Child<nn::Linear> fused;
};

TEST_F(Contract3_10, ASecondIncompatiblePackingIsRefused) {
  fuse_qkv();
  build(sch);
  const auto pack = [&](const char* pair) {
    Schedule other = create_schedule(model, {{"hidden_states", x}});
    const auto pattern = [pair](const Tensor& y) { return call_module(pair, y); };
    const Matches matches = other.find(pattern);
    ASSERT_EQ(matches.size(), 2U);
    other.replace(nn::make<FusedPair>(), matches);
    build(other);
  };
  pack("[kv]_proj");  // neighbours already
  const std::vector<float> before = model->parameter("self_attn.v_proj.weight").to_vector<float>();
  EXPECT_ERROR(ScheduleError,
               "parameter 'self_attn.q_proj.bias' is part of another packing already; a model has "
               "one packing of its parameters at a time",
               pack("[qv]_proj"));
  EXPECT_EQ(model->parameter("self_attn.v_proj.weight").to_vector<float>(), before);
}

TEST_F(Contract3_10, CheckpointsOfPlainAndScheduledModelsAreInterchangeable) {
  const auto values = [](nn::Module& of) {
    std::map<std::string, std::vector<float>> result;
    for (const auto& [name, tensor] : of.state_dict()) result[name] = tensor.to_vector<float>();
    return result;
  };
  const auto plain = nn::make<tutorial::Attention>(kHidden, kHeads);
  fuse_qkv();
  Executor run = build(sch);
  plain->load_state_dict(model->state_dict());
  EXPECT_EQ(values(*plain), values(*model));
  const auto other = nn::make<tutorial::Attention>(kHidden, kHeads);
  model->load_state_dict(other->state_dict());
  EXPECT_EQ(values(*model), values(*other));
  other->eval();
  EXPECT_LT(max_difference(run(x), other(x)), 1e-5);  // the Program reads what was loaded
}

}  // namespace state_contracts_test
}  // namespace tenon
