// Training from a schedule: forward, backward, gradient clipping and the optimizer's update as one
// Program, lowered together.
//
//   auto sch = create_schedule(model, {{"tokens", tokens}});
//   schedules(sch);                                             // any primitives
//   auto step = build_training(sch, {.loss = next_token_loss,
//                                    .targets = {{"targets", targets}},
//                                    .optimizer = std::make_shared<nn::AdamW>(
//                                        model->named_parameters(), options)});
//   for (auto& [x, y] : batches) float loss = step.run({x, y}).loss.item();
//
// Steps of different models run on different threads at once; for the same dropout masks as on one
// thread, each thread has a generator of its own (GeneratorScope, tensor/random.h).
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graph/executor.h"
#include "nn/optimizer.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"

namespace tenon {

/// From the model's outputs and the targets to the loss, a tensor of one element.
using LossFunction =
    std::function<Tensor(std::span<const Tensor> outputs, std::span<const Tensor> targets)>;

struct TrainingOptions {
  /// Without it the model's first output is the loss.
  LossFunction loss = {};
  /// Inputs of a step beside the model's, handed to `loss`.
  std::vector<ExampleInput> targets = {};
  /// What uses the gradients; without one a step returns them.
  std::shared_ptr<nn::Optimizer> optimizer = {};
  /// Gradients of this many runs are averaged into one update.
  int micro_batches = 1;
  /// As in BuildOptions; passes are verified too.
  bool verify = true;
  bool accept_uncompared = false;
  std::ostream* log = standard_log();
  JointPasses passes = {};
};

struct TrainingResult {
  Tensor loss;
  /// The global gradient norm before clipping; undefined where the optimizer does not clip.
  Tensor grad_norm;
  /// Without an optimizer: by parameter name. A parameter that the loss does not depend on is absent.
  std::vector<std::pair<std::string, Tensor>> gradients;
  /// False for a micro-batch that only accumulated.
  bool updated = true;
};

/// What a training Program does with a forward Graph; parameters, optimizer state and accumulators
/// are state that a run writes.
class TrainingStep {
 public:
  /// One batch: the model's inputs, then the targets. Advances the generator as a call of the model
  /// in training mode does. ConcurrencyError while another thread runs this step, or another
  /// Program that writes state of it; steps of different models run at once.
  TrainingResult run(std::span<const Tensor> inputs);
  TrainingResult run(std::initializer_list<Tensor> inputs) {
    return run(std::span(inputs.begin(), inputs.size()));
  }
  /// The joint Graph of the run that updates.
  const Graph& graph() const { return update_->graph(); }
  /// The Program that updates, for inputs like these.
  Program& program(std::span<const Tensor> inputs) { return update_->program(inputs, true); }

 private:
  friend TrainingStep build_training(const Schedule&, const TrainingOptions&);
  TrainingOptions options_;
  std::shared_ptr<nn::Module> model_;
  struct TrainedParameter {
    std::string name;
    Tensor parameter;
    bool frozen = false;
  };
  std::vector<TrainedParameter> parameters_;
  std::vector<std::string> gradient_names_;  // outputs behind the loss, without an optimizer
  bool returns_norm_ = false;
  std::unique_ptr<Executor> accumulate_;  // micro_batches > 1: all but the last
  std::unique_ptr<Executor> update_;
  int done_ = 0;  // micro-batches since the last update
  ExclusiveUse in_use_;
};

/// Verifies the schedule, derives the joint Graph, verifies what passes rewrote in it and packs the
/// parameters that the schedule joins. VerificationError where results differ, naming the pass.
/// The optimizer holds parameters of the schedule's model, or some of them; frozen ones have no gradient
/// and keep their values. ScheduleError when the loss has more than one element; ValueError naming a
/// parameter that the optimizer clips and that has no gradient. Gradient hooks of parameters run here,
/// under the tracer: the ops they call become part of the step, whatever else they do is not repeated.
/// ScheduleError naming the parameter whose hook asks for numbers (item()). StaleProgram as build(), and
/// at the next run once such a hook was added or taken off, or a parameter was frozen or thawed; now,
/// when code asked training() and the model was traced in eval mode. A step runs the root in training
/// mode with grad mode on; a module that was in eval mode beside it, the loss's too, stays in it.
TrainingStep build_training(const Schedule& schedule, const TrainingOptions& options);

}  // namespace tenon
