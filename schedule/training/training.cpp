#include "schedule/training.h"

#include <algorithm>
#include <unordered_map>

#include "autograd/autograd.h"
#include "schedule/joint_graph.h"
#include "schedule/rewriting/state.h"
#include "schedule/training/pass_checks.h"
#include "schedule/verification.h"
#include "tensor/interpreter.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

/// What the gradients of a step are taken by, and, with micro-batches, where they add up.
struct Target {
  Target(std::string target_name, const Tensor& tensor)
      : name(std::move(target_name)),
        parameter(tensor),
        frozen(!tensor.requires_grad()),
        hooks{fmt::format("parameter '{}'", name), hooks_of(tensor), hooks_of(tensor)->numbers()} {}
  std::string name;
  Tensor parameter;
  bool frozen = false;  // an optimizer may hold it: it has no gradient and keeps its value
  RecordedHooks hooks;
  Tensor accumulator = {};  // float32 for 16-bit parameters
};

/// The model's parameters, then those that the schedule added.
nn::Module::NamedTensors parameters_of(const Schedule& schedule) {
  nn::Module::NamedTensors names = schedule.model().named_parameters();
  for (auto& added : schedule.added_parameters()) names.push_back(std::move(added));
  return names;
}

std::vector<Target> targets_of(const Schedule& schedule, const nn::Optimizer* optimizer) {
  std::vector<Target> targets;
  if (optimizer != nullptr) {
    for (const auto& [name, parameter] : optimizer->parameters())
      targets.emplace_back(name, parameter);
    return targets;
  }
  for (const auto& [name, parameter] : parameters_of(schedule)) {
    if (parameter.requires_grad()) targets.emplace_back(name, parameter);
  }
  return targets;
}

void check_options(const Schedule& schedule, const TrainingOptions& options,
                   const std::vector<Target>& targets) {
  TENON_CHECK(options.micro_batches >= 1, ScheduleError,
              "build_training: micro_batches is {}; needed at least 1", options.micro_batches);
  TENON_CHECK(options.optimizer || options.micro_batches == 1, ScheduleError,
              "build_training: micro_batches without an optimizer: there is no update to wait for");
  TENON_CHECK(!targets.empty(), ScheduleError,
              "build_training: no parameter of {} requires a gradient",
              schedule.model().type_name());
  std::unordered_map<const TensorImpl*, bool> own;
  for (const auto& [name, parameter] : parameters_of(schedule)) {
    own[parameter.impl().get()] = true;
  }
  for (const Target& target : targets) {
    TENON_CHECK(own.contains(target.parameter.impl().get()), ScheduleError,
                "build_training: the optimizer's parameter '{}' is not one of the schedule's model",
                target.name);
  }
}

ModuleTree tree_of(const Schedule& schedule, const TrainingOptions& options,
                   const std::vector<Target>& targets) {
  ModuleTree tree = detail::state_tree(schedule);
  if (options.optimizer) {
    for (const auto& [name, tensor] : options.optimizer->state_tensors()) {
      tree.states.push_back({"optimizer." + name, ValueKind::buffer, tensor});
    }
  }
  for (const Target& target : targets) {
    if (!target.accumulator) continue;
    tree.states.push_back({"accumulated." + target.name, ValueKind::buffer, target.accumulator});
  }
  return tree;
}

Tensor loss_of(const TrainingOptions& options, std::span<const Tensor> outputs,
               std::span<const Tensor> targets) {
  const Tensor loss = options.loss ? options.loss(outputs, targets) : outputs[0];
  TENON_CHECK(loss && is_floating(loss.dtype()), ScheduleError,
              "build_training: the loss is not a floating tensor");
  const bool one = std::all_of(loss.shape().begin(), loss.shape().end(),
                               [](const Dim& size) { return size.same_as(1); });
  TENON_CHECK(one, ScheduleError,
              "build_training: the loss has shape {}; needed one element, reduce it",
              loss.shape().to_string());
  TENON_CHECK(loss.requires_grad(), ScheduleError,
              "build_training: the loss depends on no parameter that requires a gradient");
  return loss;
}

/// gradient/n in the accumulator's dtype.
Tensor share(const Tensor& gradient, const Tensor& accumulator, int n) {
  return gradient.to(accumulator.dtype()) * (1.0 / n);
}

class StepTrace {
 public:
  StepTrace(const Schedule& schedule, const Graph& forward, const TrainingOptions& options,
            const std::vector<Target>& targets, const PassObserver& observer)
      : options_(options),
        targets_(targets),
        observer_(observer),
        joint_(forward, tree_of(schedule, options, targets)) {
    for (const ExampleInput& target : options.targets) extra_.push_back(joint_.add_input(target));
  }

  /// Forward and backward, whose gradients are only added up.
  Graph accumulating() {
    return record([&](std::span<const Tensor> outputs) {
      const Tensor loss = loss_of(options_, outputs, extra_);
      const auto gradients = gradients_of(loss);
      const NoGradGuard no_grad;
      for (std::size_t i = 0; i < targets_.size(); ++i) {
        Tensor sum = targets_[i].accumulator;
        if (gradients[i]) sum.add_(share(gradients[i], sum, options_.micro_batches));
      }
      return std::vector{loss};
    });
  }

  /// Forward, backward and the optimizer's update; without an optimizer the gradients are returned,
  /// and `names` says whose they are.
  Graph updating(std::vector<std::string>& names) {
    return record([&](std::span<const Tensor> outputs) {
      const Tensor loss = loss_of(options_, outputs, extra_);
      auto gradients = gradients_of(loss);
      const NoGradGuard no_grad;
      std::vector<Tensor> results{loss};
      if (options_.micro_batches > 1) add_accumulated(gradients);
      if (options_.optimizer) {
        const Tensor norm = options_.optimizer->update(gradients);
        if (norm) results.push_back(norm);
        return results;
      }
      for (std::size_t i = 0; i < gradients.size(); ++i) {
        if (!gradients[i]) continue;
        names.push_back(targets_[i].name);
        results.push_back(gradients[i]);
      }
      return results;
    });
  }

 private:
  Graph record(const std::function<std::vector<Tensor>(std::span<const Tensor>)>& step) {
    Graph graph = joint_.record(step, options_.passes, observer_);
    for (const Target& target : targets_) graph.mutable_facts().add(target.hooks);
    return graph;
  }

  std::vector<Tensor> gradients_of(const Tensor& loss) const {
    std::vector<Tensor> parameters;
    for (const Target& target : targets_) {
      if (!target.frozen) parameters.push_back(target.parameter);
    }
    std::vector<Tensor> gradients(targets_.size());
    if (parameters.empty()) return gradients;
    const auto wanted =
        grad(std::span(&loss, 1), parameters, {}, {.allow_unused = true, .leaf_hooks = false});
    auto next = wanted.begin();
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      if (targets_[i].frozen) continue;
      if (*next) gradients[i] = hooked(targets_[i], *next);
      ++next;
    }
    return gradients;
  }

  /// What the hooks of a parameter make of its gradient, as ops of the Graph.
  static Tensor hooked(const Target& target, const Tensor& gradient) {
    try {
      return apply_hooks(target.parameter, gradient);
    } catch (const TraceError& error) {
      throw ScheduleError(fmt::format(
          "build_training: a gradient hook of parameter '{}' cannot be recorded: {}. Take it off, "
          "or let it call ops only; a step built without an optimizer returns gradients to read",
          target.name, error.what()));
    }
  }

  void add_accumulated(std::vector<Tensor>& gradients) const {
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      if (!gradients[i]) continue;
      Tensor sum = targets_[i].accumulator;
      gradients[i] =
          (sum + share(gradients[i], sum, options_.micro_batches)).to(gradients[i].dtype());
      sum.zero_();
    }
  }

  const TrainingOptions& options_;
  const std::vector<Target>& targets_;
  const PassObserver& observer_;
  JointGraph joint_;
  std::vector<Tensor> extra_;
};

}  // namespace

TrainingStep build_training(const Schedule& schedule, const TrainingOptions& options) {
  const auto used = schedule.use("[build_training] the schedule");
  Graph forward = schedule.graph();
  if (!options.verify) forward.mutable_facts().accept_hooks();
  require_current(forward);
  forward.facts().require_mode(true);
  std::vector<Target> targets = targets_of(schedule, options.optimizer.get());
  check_options(schedule, options, targets);
  if (options.verify) {
    detail::require_verified(schedule, "build_training", options.accept_uncompared, options.log);
  }
  if (options.optimizer) options.optimizer->follow_parameters();
  if (options.micro_batches > 1) {
    for (Target& target : targets) {
      if (target.frozen) continue;
      const Tensor& parameter = target.parameter;
      const DType dtype = parameter.dtype() == DType::float64 ? DType::float64 : DType::float32;
      target.accumulator = zeros(parameter.shape(), {dtype, parameter.device()});
    }
  }
  TrainingStep step;
  step.options_ = options;
  for (const Target& target : targets) {
    step.parameters_.push_back({target.name, target.parameter, target.frozen});
  }
  step.model_ = schedule.shared_model();
  detail::PassChecks checks("build_training");
  const PassObserver observer = options.verify ? checks.observer() : PassObserver();
  Graph update =
      StepTrace(schedule, forward, options, targets, observer).updating(step.gradient_names_);
  if (options.micro_batches > 1) {
    step.accumulate_ = std::make_unique<Executor>(
        StepTrace(schedule, forward, options, targets, observer).accumulating());
  }
  if (options.verify && options.log != nullptr) {
    *options.log << "build_training: " << checks.summary() << '\n';
  }
  pack_parameters(forward);
  step.returns_norm_ = options.optimizer && update.outputs().size() > 1;
  step.update_ = std::make_unique<Executor>(std::move(update));
  return step;
}

TrainingResult TrainingStep::run(std::span<const Tensor> inputs) {
  const ExclusiveUse::Scope used(in_use_, "[run] the training step");
  const GradModeGuard grad_mode(true);  // as it was recorded
  for (const auto& [name, parameter, frozen] : parameters_) {
    TENON_CHECK(parameter.requires_grad() != frozen, StaleProgram,
                "parameter '{}' was {} since the training step was built; build it again", name,
                frozen ? "made to require a gradient" : "frozen");
  }
  const bool updates = done_ + 1 == options_.micro_batches;
  const std::vector<Tensor> outputs = (updates ? *update_ : *accumulate_).run(inputs, true);
  done_ = updates ? 0 : done_ + 1;  // a batch that was refused does not count
  TrainingResult result;
  result.updated = updates;
  result.loss = outputs[0];
  if (!updates) return result;
  std::size_t next = 1;
  if (returns_norm_) result.grad_norm = outputs[next++];
  for (const std::string& name : gradient_names_)
    result.gradients.emplace_back(name, outputs[next++]);
  return result;
}

}  // namespace tenon
