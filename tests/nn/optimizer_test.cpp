// Optimizers against numbers recorded from PyTorch (tools/record_optimizer_steps.py), and what
// PyTorch has no numbers for: master weights, checkpoints, refusals.
#include "nn/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "nn/adam.h"
#include "nn/checkpoint.h"
#include "nn/clip_grad.h"
#include "nn/layers.h"
#include "nn/sgd.h"
#include "tensor/interpreter.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"
#include "tests/support/test_data.h"

namespace tenon::nn {
namespace {

using nlohmann::json;
using test::max_difference;
using NamedTensors = Module::NamedTensors;

const json& recorded() {
  static const json document =
      json::parse(std::ifstream(test::test_data("optimizer/steps.json")), nullptr, true);
  return document;
}

void flatten(const json& values, std::vector<double>& flat, std::vector<Dim>& sizes, int depth) {
  if (!values.is_array()) {
    flat.push_back(values.get<double>());
    return;
  }
  if (static_cast<int>(sizes.size()) == depth) sizes.emplace_back(values.size());
  for (const json& value : values) flatten(value, flat, sizes, depth + 1);
}

Tensor to_tensor(const json& values, DType dtype) {
  std::vector<double> flat;
  std::vector<Dim> sizes;
  flatten(values, flat, sizes, 0);
  return tensor(flat, Shape(std::move(sizes)), {dtype});
}

/// Leaves that hold recorded values.
NamedTensors initial_parameters(const std::vector<std::string>& names, DType dtype) {
  NamedTensors result;
  for (const std::string& name : names) {
    result.emplace_back(name, to_tensor(recorded()["initial"][name], dtype).requires_grad_());
  }
  return result;
}

std::unique_ptr<Optimizer> make_optimizer(const json& recorded_case, DType dtype) {
  std::vector<ParameterGroup<SgdOptions>> sgd;
  std::vector<ParameterGroup<AdamOptions>> adam;
  std::vector<ParameterGroup<AdamWOptions>> adamw;
  const OptimizerOptions common{.max_grad_norm = recorded_case["max_grad_norm"].get<double>()};
  for (const json& group : recorded_case["groups"]) {
    const NamedTensors parameters =
        initial_parameters(group["parameters"].get<std::vector<std::string>>(), dtype);
    const json& o = group["options"];
    SgdOptions s;
    s.momentum = o.value("momentum", s.momentum);
    s.dampening = o.value("dampening", s.dampening);
    s.nesterov = o.value("nesterov", s.nesterov);
    s.weight_decay = o.value("weight_decay", s.weight_decay);
    sgd.push_back({parameters, s});
    const auto with = [&](auto options) {
      if (o.contains("betas")) {
        options.beta1 = o["betas"][0].get<double>();
        options.beta2 = o["betas"][1].get<double>();
      }
      options.eps = o.value("eps", options.eps);
      options.weight_decay = o.value("weight_decay", options.weight_decay);
      return options;
    };
    adam.push_back({parameters, with(AdamOptions{})});
    adamw.push_back({parameters, with(AdamWOptions{})});
  }
  const auto kind = recorded_case["optimizer"].get<std::string>();
  if (kind == "SGD") return std::make_unique<SGD>(sgd, common);
  if (kind == "Adam") return std::make_unique<Adam>(adam, common);
  return std::make_unique<AdamW>(adamw, common);
}

/// Makes the recorded steps and compares every snapshot.
void expect_recorded_steps(const json& recorded_case, DType dtype, double tolerance) {
  const auto optimizer = make_optimizer(recorded_case, dtype);
  const NamedTensors parameters = optimizer->parameters();
  for (std::size_t step = 0; step < recorded()["gradients"].size(); ++step) {
    for (std::size_t group = 0; group < optimizer->num_groups(); ++group) {
      optimizer->set_lr(group, recorded()["lr"][step][group].get<double>());
    }
    optimizer->zero_grad();
    for (auto [name, parameter] : parameters) {
      const json& gradient = recorded()["gradients"][step][name];
      if (!gradient.is_null()) parameter.set_grad(to_tensor(gradient, dtype));
    }
    const Tensor norm = optimizer->step();
    ASSERT_EQ(norm.defined(), !recorded_case["norms"].empty());
    if (norm) {
      const double expected = recorded_case["norms"][step].get<double>();
      EXPECT_NEAR(norm.item(), expected, expected * tolerance);
    }
    const auto snapshot = recorded_case["snapshots"].find(std::to_string(step + 1));
    if (snapshot == recorded_case["snapshots"].end()) continue;
    for (const auto& [name, parameter] : parameters) {
      EXPECT_LE(max_difference(parameter, to_tensor((*snapshot)[name], DType::float64)), tolerance)
          << name << " after step " << step + 1;
    }
  }
}

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const json& one : recorded()["cases"]) names.push_back(one["name"].get<std::string>());
  return names;
}

const json& case_named(const std::string& name) {
  const json& cases = recorded()["cases"];
  return *std::find_if(cases.begin(), cases.end(),
                       [&](const json& one) { return one["name"] == name; });
}

class RecordedSteps : public ::testing::TestWithParam<std::string> {};

TEST_P(RecordedSteps, InFloat64) {
  expect_recorded_steps(case_named(GetParam()), DType::float64, 1e-13);
}
TEST_P(RecordedSteps, InFloat32) {
  expect_recorded_steps(case_named(GetParam()), DType::float32, 2e-6);
}

INSTANTIATE_TEST_SUITE_P(PyTorch, RecordedSteps, ::testing::ValuesIn(case_names()),
                         [](const auto& one) { return one.param; });

Tensor leaf(std::vector<double> values, DType dtype = DType::float32) {
  const auto n = static_cast<std::int64_t>(values.size());
  return tensor(values, {n}, {dtype}).requires_grad_();
}

TEST(Optimizer, WeightDecayPassesOverGlobs) {
  const NamedTensors parameters = {
      {"up.weight", leaf({1})}, {"up.bias", leaf({1})}, {"norm1.weight", leaf({1})}};
  SGD optimizer(parameters, {.lr = 0.5, .weight_decay = 0.5, .no_decay = {"*.bias", "*norm*"}});
  const std::vector<Tensor> zero_gradients(3, zeros({1}));
  optimizer.update(zero_gradients);
  EXPECT_EQ(parameters[0].second.item(), 0.75);
  EXPECT_EQ(parameters[1].second.item(), 1);
  EXPECT_EQ(parameters[2].second.item(), 1);
}

TEST(Optimizer, ClipsByTheGlobalNormAndReturnsIt) {
  const NamedTensors parameters = {{"a", leaf({0, 0})}, {"b", leaf({0})}};
  SGD optimizer(parameters, {.lr = 1}, {.max_grad_norm = 6.5});
  const std::vector<Tensor> gradients = {tensor({3, 4}, {2}), tensor({12}, {1})};
  EXPECT_EQ(optimizer.update(gradients).item(), 13);
  EXPECT_NEAR(parameters[1].second.item(), -6, 1e-5);

  for (std::size_t i = 0; i < 2; ++i) Tensor(parameters[i].second).set_grad(gradients[i]);
  EXPECT_EQ(clip_grad_norm_(parameters, 6.5).item(), 13);
  EXPECT_NEAR(parameters[1].second.grad().item(), 6, 1e-5);
  EXPECT_EQ(
      clip_grad_norm_(parameters, 100).item(),
      global_norm(std::vector{parameters[0].second.grad(), parameters[1].second.grad()}).item());
  EXPECT_NEAR(parameters[1].second.grad().item(), 6, 1e-5) << "a small norm is left alone";
}

/// Gradients of one value each, and the norm to clip them to.
struct Clipped {
  DType dtype;
  double gradient, max_norm;
};
const Clipped kClipped[] = {
    {DType::float16, 1, 1e-2},     {DType::float16, 60000, 1e-2}, {DType::float16, 60000, 3},
    {DType::float16, 60000, 1e4},  {DType::float16, 1e-3, 1e-2},  {DType::float16, 60000, 65000},
    {DType::bfloat16, 1, 1e-2},    {DType::bfloat16, 1e20, 1e-2}, {DType::bfloat16, 1e20, 1},
    {DType::bfloat16, 1e-3, 1e-2}, {DType::bfloat16, 3e38, 1},    {DType::bfloat16, 100, 1e-30},
    {DType::float32, 1e20, 1e-2},  {DType::float64, 1e100, 1e-2},
};

TEST(Optimizer, ClippingRoundsAScaledGradientOnce) {
  constexpr std::int64_t kCount = 1000;
  for (const Clipped& c : kClipped) {
    SCOPED_TRACE(std::string(name(c.dtype)) + " " + std::to_string(c.gradient) + " to " +
                 std::to_string(c.max_norm));
    Tensor parameter = zeros({kCount}, {c.dtype, kCpu}).requires_grad_();
    parameter.set_grad(full({kCount}, c.gradient, {c.dtype, kCpu}));
    const double gradient = parameter.grad().to_doubles()[0];
    const double norm = std::sqrt(static_cast<double>(kCount)) * gradient;
    const double reported = clip_grad_norm_({{"p", parameter}}, c.max_norm).item();
    EXPECT_TRUE(norm > 3e38 || std::abs(reported - norm) <= 1e-6 * norm) << reported;
    const double scaled = gradient * std::min(1.0, c.max_norm / (norm + 1e-6));
    const double unit = unit_roundoff(c.dtype), float32 = unit_roundoff(DType::float32);
    const double smallest = c.dtype == DType::float16 ? 0x1p-25 : 0;  // half of it
    const double allowed = scaled * (unit + 3 * float32) + smallest;
    for (const double value : parameter.grad().to_doubles()) ASSERT_NEAR(value, scaled, allowed);
    // What the header promises: at most max_norm, but for one rounding of each element.
    const double after = std::sqrt(static_cast<double>(kCount)) * parameter.grad().to_doubles()[0];
    EXPECT_LE(after, c.max_norm * (1 + unit + 3 * float32) + smallest * std::sqrt(kCount));
  }
}

TEST(Optimizer, ClippingByANormThatIsNotFiniteIsPyTorchs) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    const auto clipped = [&](double special) {
      Tensor parameter = leaf({0, 0, 0}, dtype);
      parameter.set_grad(tensor({1, special, -2}, {3}, {dtype, kCpu}));
      EXPECT_FALSE(std::isfinite(clip_grad_norm_({{"p", parameter}}, 1).item()));
      return parameter.grad().to_doubles();
    };
    const auto infinite = clipped(HUGE_VAL);
    EXPECT_EQ(infinite[0], 0);
    EXPECT_TRUE(std::isnan(infinite[1]));
    EXPECT_EQ(infinite[2], 0);
    for (const double value : clipped(NAN)) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(Optimizer, ScalesSixteenBitGradientsInFloat32) {
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    const double gradient = dtype == DType::float16 ? 60000 : 1e20;
    for (const bool master : {true, false}) {
      const NamedTensors parameters = {{"w", leaf({0, 0, 0, 0}, dtype)}};
      SGD optimizer(parameters, {.lr = 1}, {.max_grad_norm = 1e-2, .master_weights = master});
      const std::vector<Tensor> gradients = {full({4}, gradient, {dtype, kCpu})};
      const double norm = optimizer.update(gradients).item();
      EXPECT_NEAR(norm, 2 * gradients[0].to_doubles()[0], 1e-6 * norm);
      for (const double value : parameters[0].second.to_doubles()) {
        EXPECT_NEAR(value, -5e-3, 5e-3 * unit_roundoff(dtype) * 1.01);
      }
    }
  }
}

TEST(Optimizer, UnusedParameters) {
  const NamedTensors parameters = {{"used", leaf({1})}, {"head.bias", leaf({1})}};
  const std::vector<Tensor> gradients = {ones({1}), Tensor()};
  SGD plain(parameters, {.lr = 0.5});
  plain.update(gradients);
  EXPECT_EQ(parameters[0].second.item(), 0.5);
  EXPECT_EQ(parameters[1].second.item(), 1) << "without a gradient a parameter stays";

  SGD clipping(parameters, {.lr = 0.5}, {.max_grad_norm = 1});
  EXPECT_ERROR(ValueError,
               "[clip_grad_norm] parameter \"head.bias\" has no gradient: the loss does not use "
               "it. Freeze it with requires_grad_(false), or leave it out",
               clipping.update(gradients));
  EXPECT_EQ(parameters[0].second.item(), 0.5) << "a refused step changes nothing";
  Tensor(parameters[1].second).requires_grad_(false);
  clipping.update(gradients);
  EXPECT_LT(parameters[0].second.item(), 0.5);
}

TEST(Optimizer, MasterWeightsKeepWhatBfloat16WouldLose) {
  const Tensor narrow = leaf({1, -1}, DType::bfloat16);
  const Tensor wide = leaf({1, -1});
  Adam for_narrow({{"w", narrow}}, {.lr = 1e-4});
  Adam for_wide({{"w", wide}}, {.lr = 1e-4});
  for (int i = 0; i < 100; ++i) {
    const Tensor gradient = tensor({0.5, 0.25}, {2});
    for_narrow.update(std::vector{gradient.to(DType::bfloat16)});
    for_wide.update(std::vector{gradient});
  }
  EXPECT_EQ(for_narrow.state_dict().at("exp_avg.w").dtype(), DType::float32);
  EXPECT_EQ(max_difference(for_narrow.state_dict().at("master.w"), wide), 0);
  EXPECT_EQ(max_difference(narrow, wide.to(DType::bfloat16)), 0);
  EXPECT_LT(narrow.to_doubles()[0], 1) << "a hundred updates of 1e-4 add up";

  Adam without({{"w", narrow}}, {.lr = 1e-4}, {.master_weights = false});
  EXPECT_EQ(without.state_dict().at("exp_avg.w").dtype(), DType::bfloat16);
  EXPECT_FALSE(without.state_dict().contains("master.w"));
}

TEST(Optimizer, RefreshedMasterWeightsFollowTheModel) {
  const Tensor weight = leaf({1}, DType::bfloat16);
  SGD optimizer({{"w", weight}}, {.lr = 1});
  {
    const NoGradGuard no_grad;
    Tensor(weight).copy_(full({1}, 8, {DType::bfloat16}));
  }
  optimizer.refresh_master_weights();
  optimizer.update(std::vector{ones({1}, {DType::bfloat16})});
  EXPECT_EQ(weight.item(), 7);
}

TEST(Optimizer, ResumesFromACheckpointBitForBit) {
  const auto make_parameters = [] {
    Generator generator(5);
    return NamedTensors{{"w", randn({7, 3}, {DType::bfloat16}, &generator).requires_grad_()},
                        {"b", randn({3}, {}, &generator).requires_grad_()}};
  };
  const auto advance = [](Optimizer& optimizer, int from, int to) {
    for (int i = from; i < to; ++i) {
      Generator generator(static_cast<std::uint64_t>(i));
      std::vector<Tensor> gradients = {randn({7, 3}, {DType::bfloat16}, &generator), Tensor()};
      if (i % 3 != 0) gradients[1] = randn({3}, {}, &generator);
      optimizer.set_lr(1e-2 / (1 + i));
      optimizer.update(gradients);
    }
  };
  const NamedTensors whole = make_parameters();
  AdamW uninterrupted(whole);
  advance(uninterrupted, 0, 10);

  const test::TempFolder folder;
  {
    const NamedTensors first = make_parameters();
    AdamW optimizer(first);
    advance(optimizer, 0, 4);
    Checkpoint checkpoint;
    for (const auto& [name, tensor] : first) checkpoint.tensors.add("model." + name, tensor);
    for (const auto& [name, tensor] : optimizer.state_dict()) {
      checkpoint.tensors.add("optimizer." + name, tensor);
    }
    save_checkpoint(folder / "state.json", checkpoint);
  }
  const NamedTensors second = make_parameters();
  AdamW resumed(second);
  const Checkpoint checkpoint = load_checkpoint(folder / "state.json");
  StateDict state;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    if (name.starts_with("optimizer.")) state.add(name.substr(10), tensor);
  }
  const NoGradGuard no_grad;
  for (auto [name, tensor] : second) tensor.copy_(checkpoint.tensors.at("model." + name));
  EXPECT_TRUE(resumed.load_state_dict(state).ok());
  advance(resumed, 4, 10);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(max_difference(whole[i].second, second[i].second), 0);
  }
  for (const auto& [name, tensor] : uninterrupted.state_dict()) {
    EXPECT_EQ(max_difference(tensor, resumed.state_dict().at(name)), 0) << name;
  }
}

TEST(Optimizer, RefusesAStateThatDoesNotFit) {
  SGD optimizer({{"w", leaf({1, 2})}}, {.momentum = 0.9});
  StateDict state;
  state.add("step.w", full({}, 3));
  state.add("momentum_buffer.w", zeros({3}));
  state.add("exp_avg.w", zeros({2}));
  EXPECT_ERROR(ModuleError,
               "[load_state_dict] SGD cannot take this state dict, nothing was changed:"
               "\n  missing (1): \"lr.0\" float32()"
               "\n  unexpected (1): \"exp_avg.w\" float32(2,)"
               "\n  mismatched (1): \"momentum_buffer.w\": given float32(3,), needed float32(2,)",
               optimizer.load_state_dict(state));
  EXPECT_EQ(optimizer.state_dict().at("step.w").item(), 0);
}

TEST(Optimizer, RefusesWhatCannotBeOptimized) {
  const Tensor w = leaf({1});
  EXPECT_ERROR(ValueError, "[AdamW] there are no parameters", AdamW(NamedTensors{}));
  EXPECT_ERROR(ValueError, "[SGD] parameter \"v\" is given twice",
               SGD(NamedTensors{{"w", w}, {"v", w}}));
  EXPECT_ERROR(ValueError, "[SGD] parameter \"w\" is int64(2,); needed a floating tensor with data",
               SGD(NamedTensors{{"w", zeros({2}, {DType::int64})}}));
  EXPECT_ERROR(ValueError, "[SGD] lr is -1; needed a finite number, at least 0",
               SGD(NamedTensors{{"w", w}}, {.lr = -1}));
  EXPECT_ERROR(ValueError, "[Adam] a beta is 1; needed 0 <= beta < 1",
               Adam(NamedTensors{{"w", w}}, {.beta1 = 1}));
  EXPECT_ERROR(ValueError,
               "[SGD] nesterov with momentum 0 and dampening 0; needed momentum > 0 and no "
               "dampening",
               SGD(NamedTensors{{"w", w}}, {.nesterov = true}));
  SGD optimizer(NamedTensors{{"w", w}});
  EXPECT_ERROR(ValueError, "[SGD] 0 gradients were given; needed one for each of 1 parameters",
               optimizer.update({}));
  EXPECT_ERROR(ValueError, "[SGD] there is no group 1; there are 1", optimizer.lr(1));
  EXPECT_ERROR(ShapeError, "[sgd_step] 'grad' of parameter 0 has shape (2,); needed (1,)",
               optimizer.update(std::vector{zeros({2})}));
}

}  // namespace
}  // namespace tenon::nn
