#include "tests/fuzz/ops/trial.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>

#include "autograd/autograd.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "tensor/error.h"
#include "tensor/random.h"
#include "tests/fuzz/ops/eager_trial.h"
#include "tests/fuzz/ops/observe.h"

namespace tenon::op_fuzz {
namespace {

/// The trace was refused, and the message says what to do.
struct TraceRefused {};

class Trial : public EagerTrial {
 public:
  using EagerTrial::EagerTrial;

  TrialResult run() {
    try {
      run_eagerly();
      if (program_.in_module && !ambiguous_) run_traced();
    } catch (const Mismatch& mismatch) {
      result_.mismatch = mismatch.text;
    } catch (const TraceRefused&) {
      result_.trace_refused = true;
    } catch (const std::exception& error) {
      result_.mismatch = fmt::format("{}: {}", doing_, error.what());
    }
    return std::move(result_);
  }

 private:
  std::vector<Tensor> trace_body(Registers registers, const std::vector<Tensor>& inputs) const {
    const Registers before = registers;
    std::size_t next = 0;
    for (const int reg : input_registers(before)) {
      for (auto& [other, tensor] : registers) {
        if (canonical(before, other) == reg) tensor = inputs.at(next);
      }
      ++next;
    }
    for (const Step& step : program_.steps) {
      if (!step.before) trace_step(step, registers);
    }
    std::vector<Tensor> outputs;
    for (const int reg : program_.outputs) outputs.push_back(registers.at(reg));
    return outputs;
  }

  void trace_step(const Step& step, Registers& registers) const {
    const Attempt made = attempt(step, registers, options_, true);
    const unsigned eager = refusals_.at(&step);
    if (made.refusal != eager) {
      fail(fmt::format("{} under the tracer: {} ({}); eagerly {}", to_string(step),
                       names_of(made.refusal), made.message, names_of(eager)));
    }
    if (made.refusal == kNothing && step.result >= 0) registers[step.result] = made.result;
  }

  bool changes_in_place() const {
    return std::any_of(program_.steps.begin(), program_.steps.end(), [](const Step& step) {
      const std::string_view name = step.call->name;
      return !step.before && (name.ends_with("_") || name == "batch_norm");
    });
  }

  /// Passes over a refusal that names its remedy.
  template <class F>
  void refusing_writes(const F& trace) const {
    try {
      trace();
    } catch (const TraceError& error) {
      const std::string text = error.what();
      const bool has_remedy = text.find("clone()") != std::string::npos ||
                              text.find("take the view again") != std::string::npos;
      if (!changes_in_place() || !has_remedy) throw;
      throw TraceRefused();
    }
  }

  /// The module on tensors of its own, and its Graph.
  struct Traced {
    Registers registers;
    nn::Child<Body> module;
    std::vector<Tensor> inputs;
    std::optional<Graph> graph;
  };

  std::shared_ptr<Traced> trace_module() {
    doing_ = "trace";
    const auto traced = std::make_shared<Traced>();
    seed();
    traced->registers = prepare();
    traced->module = make_module(traced->registers);
    ask_for_gradients(traced->registers);
    traced->inputs = inputs_of(traced->registers);
    traced->module->function = [this, &traced](const std::vector<Tensor>& inputs) {
      return trace_body(traced->registers, inputs);
    };
    std::vector<ExampleInput> examples;
    for (const Tensor& input : traced->inputs) examples.emplace_back(input);
    refusing_writes([&] {
      const auto call = [&](std::span<const Tensor> given) {
        return traced->module(std::vector<Tensor>(given.begin(), given.end()));
      };
      traced->graph = create_schedule(traced->module.shared(), call, examples).graph();
    });
    return traced;
  }

  void run_traced() {
    result_.traced = true;
    const auto traced = trace_module();
    doing_ = "the Program";
    Executor executor(*traced->graph);
    seed();
    for (std::size_t i = 0; i < seen_.size(); ++i) {
      compare_run(i, executor.run(traced->inputs, i < kRunsOfMode), traced->registers);
    }
    if (program_.wants_gradients && !differentiated_.empty()) run_joint();
  }

  /// A Program copies strided inputs and does not read what it wrote into strided state, and the GPU's
  /// products are others than eager ones: sums are taken in another order.
  bool may_round_otherwise() const {
    return !options_.device.is_cpu() ||
           std::any_of(program_.steps.begin(), program_.steps.end(), [&](const Step& step) {
             return step.before && step.result >= 0 && !tensors_.at(step.result).is_contiguous();
           });
  }

  /// The eager runs once more, with the errors that a value may have.
  const std::vector<Observation>& followed() {
    if (!followed_) {
      const Generator generator = default_generator();
      followed_ = std::make_unique<EagerTrial>(program_, options_, true);
      followed_->run_eagerly();
      default_generator() = generator;
    }
    return followed_->seen();
  }

  /// What of an observation is compared.
  using Part = std::function<const Seen&(const Observation&)>;
  void compare(const Tensor& tensor, std::size_t run, const Part& part, const std::string& where) {
    const Numbers found = read(tensor);
    std::string difference = compare_exactly(found, part(seen_[run]).values, false);
    if (!difference.empty() && may_round_otherwise()) {
      const Seen& eager = part(followed()[run]);
      difference = compare_within(found, eager.values, eager.errors);
    }
    require(difference, where + " against eager");
  }

  void compare_run(std::size_t run, const std::vector<Tensor>& outputs,
                   const Registers& registers) {
    const std::string where = fmt::format("run {} of the Program, {}", run,
                                          run < kRunsOfMode ? "training" : "evaluation");
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const Array& array = reference_.registers.at(program_.outputs[i])->array;
      const std::string output = fmt::format("{}, output r{}", where, program_.outputs[i]);
      require(compare_spec(outputs[i], array), output);
      compare(
          outputs[i], run, [i](const auto& seen) -> const Seen& { return seen.outputs[i]; },
          output);
    }
    std::size_t next = 0;
    for (const Step& step : program_.steps) {
      if (!step.before || step.result < 0) continue;
      compare(
          registers.at(step.result), run,
          [next](const auto& seen) -> const Seen& { return seen.state[next]; },
          fmt::format("{}, r{} afterwards", where, step.result));
      ++next;
    }
  }

  void run_joint() {
    const auto traced = trace_module();
    const Registers& registers = traced->registers;
    std::vector<Tensor> inputs = traced->inputs;
    doing_ = "the joint Graph";
    JointGraph joint(*traced->graph, {});
    const std::vector<int> of_inputs = input_registers(registers);
    for (std::size_t i = 0; i < of_inputs.size(); ++i) {
      if (registers.at(of_inputs[i]).requires_grad()) joint.input(i).requires_grad_();
    }
    std::vector<Tensor> targets;
    for (const std::size_t i : differentiated_) {
      inputs.push_back(cotangent(i, reference_.registers.at(program_.outputs[i])->array));
      targets.push_back(joint.add_input({fmt::format("cotangent_{}", i), inputs.back()}));
    }
    const std::vector<int> wanted = leaves(registers);
    std::vector<std::size_t> defined;
    Graph gradients = joint.record([&](std::span<const Tensor> outputs) {
      std::vector<Tensor> roots, of, found;
      for (std::size_t i = 0; i < targets.size(); ++i) {
        roots.push_back(sum(outputs[differentiated_[i]] * targets[i]));
      }
      for (const int reg : wanted) {
        const auto place = std::find(of_inputs.begin(), of_inputs.end(), reg);
        of.push_back(place == of_inputs.end()
                         ? registers.at(reg)
                         : joint.input(static_cast<std::size_t>(place - of_inputs.begin())));
      }
      const auto all = grad(roots, of, {}, {.allow_unused = true});
      for (std::size_t i = 0; i < all.size(); ++i) {
        if (!all[i]) continue;
        defined.push_back(i);
        found.push_back(all[i]);
      }
      if (found.empty()) found.push_back(roots.at(0));
      return found;
    });
    Executor executor(std::move(gradients));
    seed();
    for (std::size_t run = 0; run < seen_.size(); ++run) {
      const std::vector<Tensor> outputs = executor.run(inputs, run < kRunsOfMode);
      std::vector<Tensor> found(wanted.size());
      for (std::size_t i = 0; i < defined.size(); ++i) found[defined[i]] = outputs[i];
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        compare_gradient(
            found[i], seen_[run].gradients[i],
            fmt::format("run {} of the joint Graph, the gradient of r{}", run, wanted[i]));
      }
    }
  }

  std::unique_ptr<EagerTrial> followed_;
};

}  // namespace

TrialResult run_trial(const Program& program, const TrialOptions& options) {
  return Trial(program, options).run();
}

}  // namespace tenon::op_fuzz
