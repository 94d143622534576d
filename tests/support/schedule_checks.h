// What every test of a schedule asks: that scheduled and eager runs agree in all they give, and that a
// refusal changes nothing.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "nn/module.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "schedule/verification.h"
#include "tensor/functional.h"
#include "tensor/random.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"

namespace tenon::test {

inline constexpr std::uint64_t kSeed = 20261122;

/// The whole of a tensor equals the whole of another, bit for bit where neither has a NaN.
inline bool same_values(const Tensor& a, const Tensor& b) {
  return a.shape().hints() == b.shape().hints() && a.dtype() == b.dtype() &&
         max_difference(a, b) == 0;
}

/// Draws every floating parameter from a seed, alike for models of one structure.
inline void initialize(nn::Module& model, std::uint64_t seed = kSeed) {
  Generator generator(seed);
  const NoGradGuard no_grad;
  for (auto& [name, tensor] : model.named_parameters()) {
    Tensor(tensor).copy_(randn(tensor.shape(), {}, &generator) * 0.3);
  }
}

template <class M, class... A>
nn::Child<M> initialized(const A&... arguments) {
  auto model = nn::make<M>(arguments...);
  initialize(*model);
  return model;
}

/// The sum over outputs of the mean squared distance to a target each.
inline Tensor distance(std::span<const Tensor> outputs, std::span<const Tensor> targets) {
  Tensor loss = mse_loss(outputs[0], targets[0]);
  for (std::size_t i = 1; i < outputs.size(); ++i) loss = loss + mse_loss(outputs[i], targets[i]);
  return loss;
}

inline std::vector<Tensor> targets_like(std::span<const Tensor> outputs) {
  Generator generator(kSeed + 7);
  std::vector<Tensor> targets;
  for (const Tensor& output : outputs) {
    const Tensor target = randn(output.shape(), {}, &generator);
    targets.push_back(target.to(output.dtype()).to(output.device()));
  }
  return targets;
}

/// One training step without an update.
struct StepResults {
  double loss = 0;
  std::map<std::string, Tensor> gradients;
};

template <class T>
StepResults eager_step(const nn::Child<T>& model, const std::vector<Tensor>& inputs) {
  for (auto& [name, tensor] : model->named_parameters()) Tensor(tensor).set_grad(Tensor());
  manual_seed(kSeed);
  const std::vector<Tensor> outputs = model.call(inputs);
  const Tensor loss = distance(outputs, targets_like(outputs));
  backward(loss);
  StepResults results{loss.item(), {}};
  for (const auto& [name, tensor] : model->named_parameters()) {
    if (tensor.grad()) results.gradients[name] = tensor.grad().clone();
  }
  return results;
}

/// The same by a training Program of the schedule; `arena_bytes` gets its memory, if asked for.
inline StepResults program_step(const Schedule& schedule, const std::vector<Tensor>& inputs,
                                std::size_t* arena_bytes = nullptr) {
  const std::vector<Tensor> outputs = Executor(schedule.original()).run(inputs);
  const std::vector<Tensor> targets = targets_like(outputs);
  std::vector<ExampleInput> examples;
  for (const Tensor& target : targets) {
    examples.emplace_back("target_" + std::to_string(examples.size()), target);
  }
  TrainingStep step =
      build_training(schedule, {.loss = distance, .targets = std::move(examples), .verify = false});
  std::vector<Tensor> batch = inputs;
  batch.insert(batch.end(), targets.begin(), targets.end());
  if (arena_bytes != nullptr) *arena_bytes = step.program(batch).arena_bytes();
  manual_seed(kSeed);
  const TrainingResult run = step.run(batch);
  StepResults results{run.loss.item(), {}};
  for (const auto& [name, gradient] : run.gradients) results.gradients[name] = gradient;
  return results;
}

inline void expect_close(const Tensor& actual, const Tensor& expected, double tolerance,
                         const std::string& what) {
  ASSERT_EQ(actual.shape().hints(), expected.shape().hints()) << what;
  double scale = 1e-3;
  for (double x : expected.to_doubles()) scale = std::max(scale, std::abs(x));
  EXPECT_LE(max_difference(actual, expected), tolerance * scale) << what;
}

/// The same gradients under the same names: within `tolerance` of the largest one, or, for 0, the
/// same bits.
inline void expect_same_step(const StepResults& actual, const StepResults& expected,
                             double tolerance) {
  EXPECT_NEAR(actual.loss, expected.loss, tolerance * std::abs(expected.loss));
  double scale = 0;
  for (const auto& [name, gradient] : expected.gradients) {
    for (double x : gradient.to_doubles()) scale = std::max(scale, std::abs(x));
  }
  EXPECT_FALSE(expected.gradients.empty());
  EXPECT_EQ(actual.gradients.size(), expected.gradients.size());
  for (const auto& [name, gradient] : expected.gradients) {
    ASSERT_TRUE(actual.gradients.contains(name)) << "no gradient of " << name;
    EXPECT_LE(max_difference(actual.gradients.at(name), gradient), tolerance * scale)
        << "gradient of " << name;
  }
}

/// The scheduled and the eager model agree: outputs in eval mode, outputs in training mode with the
/// same masks, the gradient of every parameter; by verification those of the inputs and the buffers.
template <class T>
void expect_equivalent(const nn::Child<T>& model, const Schedule& schedule,
                       const std::vector<Tensor>& inputs, double tolerance = 2e-5) {
  const VerifyReport report = verify(schedule);
  EXPECT_TRUE(report.ok()) << report.to_string();
  Executor run = build(schedule, {.verify = false});
  for (const bool training : {false, true}) {
    model->train(training);
    manual_seed(kSeed);
    const std::vector<Tensor> scheduled = run.run(inputs, training);
    manual_seed(kSeed);
    const std::vector<Tensor> eager = model.call(inputs);
    ASSERT_EQ(scheduled.size(), eager.size());
    for (std::size_t i = 0; i < eager.size(); ++i) {
      expect_close(scheduled[i], eager[i], tolerance,
                   std::string(training ? "training" : "eval") + " output " + std::to_string(i));
    }
  }
  expect_same_step(program_step(schedule, inputs), eager_step(model, inputs), tolerance);
}

/// The call is refused with this text in the message and changes nothing.
template <class F>
void expect_refused(const Schedule& schedule, const std::string& text, F&& call) {
  const std::string before = to_text(schedule.graph());
  const std::string dot = to_dot(schedule);
  const std::string tree = schedule.to_string();
  const std::size_t guards = schedule.graph().guards()->guards.size();
  const std::size_t applied = schedule.applied().size();
  const std::string message = error_text<ScheduleError>(call);
  EXPECT_NE(message.find(text), std::string::npos) << message;
  EXPECT_EQ(to_text(schedule.graph()), before);
  EXPECT_EQ(to_dot(schedule), dot);
  EXPECT_EQ(schedule.to_string(), tree);
  EXPECT_EQ(schedule.graph().guards()->guards.size(), guards);
  EXPECT_EQ(schedule.applied().size(), applied);
}

/// Names of the nodes that are seen as those of the module at `path`, in program order.
inline std::vector<std::string> nodes_seen_in(const Graph& graph, const std::string& path) {
  std::vector<std::string> names;
  for (NodeId id : graph.order()) {
    if (graph.call(graph.visible_call(id)).path == path) names.push_back(graph.node(id).name);
  }
  return names;
}

}  // namespace tenon::test
