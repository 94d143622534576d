#include "tests/fuzz/ops/trial.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "autograd/autograd.h"
#include "nn/module.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "tensor/error.h"
#include "tensor/random.h"
#include "tests/fuzz/ops/observe.h"

namespace tenon::op_fuzz {
namespace {

struct Mismatch {
  std::string text;
};

[[noreturn]] void fail(const std::string& text) { throw Mismatch{text}; }

void require(const std::string& difference, const std::string& where) {
  if (!difference.empty()) fail(where + ": " + difference);
}

/// The trace was refused, and the message says what to do.
struct TraceRefused {};

std::string names_of(unsigned refusals) {
  std::string text;
  const auto add = [&](Refusal kind, const char* name) {
    if ((refusals & kind) != 0) text += (text.empty() ? "" : " or ") + std::string(name);
  };
  add(kShape, "ShapeError");
  add(kDType, "DTypeError");
  add(kValue, "ValueError");
  return text.empty() ? "nothing" : text;
}

using Registers = std::map<int, Tensor>;

/// What came of a call: the tensor, or how it was refused.
struct Attempt {
  Tensor result;
  unsigned refusal = kNothing;
  std::string message;
};

Attempt attempt(const Step& step, const Registers& registers, const TrialOptions& options,
                bool traced) {
  Invocation invocation{step, {}, options.device, traced};
  for (const int reg : step.operands) invocation.operands.push_back(registers.at(reg));
  Run run = step.call->run;
  if (options.overrides != nullptr) {
    const auto planted = options.overrides->find(step.call->name);
    if (planted != options.overrides->end()) run = planted->second;
  }
  Attempt result;
  const auto refused = [&](unsigned kind, const std::exception& error) {
    result.refusal = kind;
    result.message = error.what();
  };
  try {
    const GradModeGuard mode(grad_enabled() && !step.no_grad);
    result.result = run(invocation);
  } catch (const ShapeError& error) {
    refused(kShape, error);
  } catch (const DTypeError& error) {
    refused(kDType, error);
  } catch (const ValueError& error) {
    refused(kValue, error);
  }
  return result;
}

/// A module whose forward is a program's body.
class Body : public nn::Module {
 public:
  using Forward = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;
  std::vector<Tensor> forward(const std::vector<Tensor>& inputs) { return function(inputs); }
  void adopt(const std::string& name, Role role, const Tensor& tensor) {
    if (role == Role::buffer) register_buffer(name, tensor);
    if (role == Role::parameter) register_parameter(name, tensor);
  }
  Forward function;
};

/// What a run of the module gave, and how its state was afterwards.
struct Observation {
  std::vector<Numbers> outputs;
  std::vector<Numbers> state;  // of the registers from before the call
  std::vector<Check> gradients;
};

constexpr int kRunsOfMode = 2;

class Trial {
 public:
  Trial(const Program& program, const TrialOptions& options)
      : program_(program), options_(options) {}

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
  // --- eagerly, beside the reference -----------------------------------------------------------

  void run_eagerly() {
    reference_.now.on_device = !options_.device.is_cpu();
    seed();
    for (const Step& step : program_.steps) {
      if (step.before || !program_.in_module) check_step(step);
    }
    check_all("at the end");
    if (!program_.in_module) return;
    const auto module = make_module(tensors_);
    ask_for_gradients(tensors_);
    for (auto& [reg, handle] : reference_.registers) {
      handle->requires_grad = tensors_.at(reg).requires_grad();
    }
    module->function = [this](const std::vector<Tensor>&) { return check_body(); };
    seed();
    for (int i = 0; i < 2 * kRunsOfMode; ++i) {
      module->train(i < kRunsOfMode);
      reference_.now.training = i < kRunsOfMode;
      reference_.now.random.enter_module(i < kRunsOfMode);
      const std::vector<Tensor> outputs = module(inputs_of(tensors_));
      reference_.now.random.leave_module();
      observe(outputs);
    }
  }

  void seed() {
    manual_seed(program_.seed);
    reference_.now.random = {program_.seed};
  }

  void check_step(const Step& step) {
    if (!has_operands(step, tensors_)) return;
    doing_ = to_string(step);
    const Outcome outcome = reference_.evaluate(step);
    const Attempt made = attempt(step, tensors_, options_, false);
    ++result_.steps;
    refusals_[&step] = made.refusal;
    if (made.refusal != kNothing) {
      ++result_.refusals;
      if ((made.refusal & (outcome.required | outcome.permitted)) == 0) {
        fail(fmt::format("{} was refused ({}); needed {}", doing_, made.message,
                         outcome.required != 0 ? names_of(outcome.required) : "a result"));
      }
      ambiguous_ |= outcome.required == kNothing || outcome.by_data;
      return check_all(fmt::format("after {} was refused", doing_));
    }
    if (outcome.required != kNothing) {
      fail(fmt::format("{} was not refused; needed {}", doing_, names_of(outcome.required)));
    }
    ambiguous_ |= outcome.permitted != kNothing;
    compare(step, outcome, made.result);
  }

  /// False behind a call that was refused though it need not be.
  static bool has_operands(const Step& step, const Registers& registers) {
    return std::all_of(step.operands.begin(), step.operands.end(),
                       [&](int reg) { return registers.contains(reg); });
  }

  void compare(const Step& step, const Outcome& outcome, const Tensor& result) {
    if (outcome.result) {
      require(compare_spec(result, outcome.result->array), doing_);
      if (result.requires_grad() != outcome.result->requires_grad) {
        fail(fmt::format("{}: requires_grad is {}", doing_, result.requires_grad()));
      }
      check_memory(step, outcome, result);
    }
    std::vector<Numbers> found;
    bool result_checked = false;
    for (const Check& check : outcome.checks) {
      const Tensor& tensor = tensor_of(check, outcome, result);
      if (!tensor) fail(doing_ + ": a gradient is missing");
      require(compare_spec(tensor, check.handle->array), doing_);
      found.push_back(read(tensor));
      require(compare_values(found.back(), check), doing_);
      result_checked |= check.handle == outcome.result;
    }
    if (outcome.draw) {
      const Numbers values = read(result);
      require(compare_draw(values, *outcome.draw, reference_.drawn), doing_);
      outcome.result->array.write(values);
    } else if (outcome.result && !result_checked) {
      require(compare_exactly(read(result), outcome.result->array.values(), true), doing_);
    }
    reference_.commit(step, outcome, found);
    if (step.result >= 0 && outcome.result) tensors_[step.result] = result;
  }

  /// The tensor that the check is about.
  Tensor tensor_of(const Check& check, const Outcome& outcome, const Tensor& result) const {
    if (check.handle == outcome.result) return result;
    const HandlePtr& wanted = check.leaf ? check.leaf : check.handle;
    for (const auto& [reg, handle] : reference_.registers) {
      if (handle != wanted) continue;
      const Tensor& tensor = tensors_.at(reg);
      return check.leaf ? tensor.grad() : tensor;
    }
    return {};
  }

  /// Whether the result shares memory with an operand is part of what a call means.
  void check_memory(const Step& step, const Outcome& outcome, const Tensor& result) const {
    if (outcome.result->array.numel() == 0) return;
    for (const int reg : step.operands) {
      const bool wanted =
          reference_.registers.at(reg)->array.memory == outcome.result->array.memory;
      const bool shares = tensors_.at(reg).storage() == result.storage();
      if (shares == wanted) continue;
      fail(fmt::format("{}: the result {} memory with r{}", doing_, shares ? "shares" : "shares no",
                       reg));
    }
  }

  /// Every register holds what it should: nothing changed that no call was to change.
  void check_all(const std::string& when) const {
    const RandomState random = default_generator().state();
    const RandomNumbers& wanted = reference_.now.random;
    if (random.seed != wanted.seed || random.forward != wanted.forward) {
      fail(fmt::format("the generator {} has seed {} and forward number {}; needed {} and {}", when,
                       random.seed, random.forward, wanted.seed, wanted.forward));
    }
    for (const auto& [reg, handle] : reference_.registers) {
      const Tensor& tensor = tensors_.at(reg);
      const std::string where = fmt::format("r{} {}", reg, when);
      require(compare_spec(tensor, handle->array), where);
      require(compare_exactly(read(tensor), handle->array.values(), true), where);
      if (tensor.requires_grad() != handle->requires_grad) {
        fail(fmt::format("{}: requires_grad is {}", where, tensor.requires_grad()));
      }
      const Tensor gradient = tensor.grad();
      if (gradient.defined() != (handle->gradient != nullptr)) {
        fail(where + (gradient ? ": it has a gradient" : ": its gradient is missing"));
      }
      if (!gradient) continue;
      require(compare_exactly(read(gradient), handle->gradient->array.values(), false),
              where + ", its gradient");
    }
  }

  std::vector<Tensor> check_body() {
    for (const Step& step : program_.steps) {
      if (!step.before) check_step(step);
    }
    std::vector<Tensor> outputs;
    ambiguous_ |= !std::all_of(program_.outputs.begin(), program_.outputs.end(),
                               [&](int reg) { return tensors_.contains(reg); });
    if (ambiguous_) return outputs;
    for (const int reg : program_.outputs) outputs.push_back(tensors_.at(reg));
    return outputs;
  }

  void observe(const std::vector<Tensor>& outputs) {
    check_all("after the module");
    Observation seen;
    for (const Tensor& output : outputs) seen.outputs.push_back(read(output));
    for (const Step& step : program_.steps) {
      if (step.before && step.result >= 0) seen.state.push_back(read(tensors_.at(step.result)));
    }
    if (program_.wants_gradients && !ambiguous_) check_gradients(seen);
    seen_.push_back(std::move(seen));
  }

  // --- gradients -------------------------------------------------------------------------------

  void ask_for_gradients(Registers& registers) const {
    if (!program_.wants_gradients) return;
    for (const Step& step : program_.steps) {
      if (!step.before || step.result < 0) continue;
      Tensor& tensor = registers.at(step.result);
      if (is_float(tensor.dtype()) && step.role == Role::input) tensor.requires_grad_();
    }
  }

  /// Registers whose gradients are asked for, each tensor once.
  std::vector<int> leaves(const Registers& registers) const {
    std::vector<int> result;
    for (const Step& step : program_.steps) {
      if (!step.before || step.result < 0) continue;
      if (canonical(registers, step.result) != step.result) continue;
      if (registers.at(step.result).requires_grad()) result.push_back(step.result);
    }
    return result;
  }

  /// Small numbers, exact in every dtype.
  static Numbers cotangent_values(std::size_t output, std::int64_t count) {
    Numbers result;
    for (std::int64_t i = 0; i < count; ++i) {
      result.push_back(static_cast<Number>((i * 5 + static_cast<std::int64_t>(output)) % 7 - 3) /
                       2);
    }
    return result;
  }

  Tensor cotangent(std::size_t output, const Array& array) const {
    std::vector<double> values;
    for (const Number value : cotangent_values(output, array.numel())) {
      values.push_back(static_cast<double>(value));
    }
    return tensor(std::span<const double>(values),
                  Shape(std::vector<Dim>(array.sizes.begin(), array.sizes.end())),
                  {array.dtype, options_.device});
  }

  void check_gradients(Observation& seen) {
    doing_ = "grad";
    std::vector<std::pair<HandlePtr, Numbers>> roots;
    std::vector<Tensor> outputs, cotangents, inputs;
    differentiated_.clear();
    for (std::size_t i = 0; i < program_.outputs.size(); ++i) {
      const HandlePtr& handle = reference_.registers.at(program_.outputs[i]);
      if (!handle->requires_grad) continue;
      differentiated_.push_back(i);
      roots.emplace_back(handle, cotangent_values(i, handle->array.numel()));
      outputs.push_back(tensors_.at(program_.outputs[i]));
      cotangents.push_back(cotangent(i, handle->array));
    }
    for (const int reg : leaves(tensors_)) inputs.push_back(tensors_.at(reg));
    if (outputs.empty() || inputs.empty()) return differentiated_.clear();
    const Gradients wanted = differentiate(roots);
    ambiguous_ |= wanted.may_be_refused;
    std::vector<Tensor> gradients;
    try {
      gradients = grad(outputs, inputs, cotangents, {.allow_unused = true});
    } catch (const ValueError&) {
      if (!wanted.may_be_refused) throw;
      return;
    }
    std::size_t i = 0;
    for (const int reg : leaves(tensors_)) {
      const std::string where = fmt::format("the gradient of r{}", reg);
      const HandlePtr& leaf = reference_.registers.at(reg);
      seen.gradients.push_back(gradient_check(leaf, wanted));
      compare_gradient(gradients[i++], seen.gradients.back(), where);
    }
  }

  /// Without values where no gradient flows.
  static Check gradient_check(const HandlePtr& leaf, const Gradients& wanted) {
    for (const auto& [handle, flow] : wanted.leaves) {
      if (handle != leaf) continue;
      return {leaf, flow.value, allowed_error(flow, leaf->array.dtype), false};
    }
    return {};
  }

  static void compare_gradient(const Tensor& found, const Check& wanted, const std::string& where) {
    if (found.defined() != (wanted.handle != nullptr)) {
      fail(where + (found ? " flows where nothing depends on it" : " is missing"));
    }
    if (!found) return;
    require(compare_spec(found, wanted.handle->array), where);
    require(compare_values(read(found), wanted), where);
  }

  // --- as a Graph ------------------------------------------------------------------------------

  /// The first register that has the same tensor.
  static int canonical(const Registers& registers, int reg) {
    for (const auto& [other, tensor] : registers) {
      if (tensor.is_same(registers.at(reg))) return other;
    }
    return reg;
  }

  Role role_of(const Registers& registers, int reg) const {
    const int first = canonical(registers, reg);
    for (const Step& step : program_.steps) {
      if (step.result == first) return step.role;
    }
    return Role::input;
  }

  /// Registers that the module gets as inputs: each tensor once.
  std::vector<int> input_registers(const Registers& registers) const {
    std::vector<int> result;
    for (const Step& step : program_.steps) {
      if (!step.before || step.result < 0 || step.role != Role::input) continue;
      if (canonical(registers, step.result) == step.result) result.push_back(step.result);
    }
    return result;
  }

  std::vector<Tensor> inputs_of(const Registers& registers) const {
    std::vector<Tensor> inputs;
    for (const int reg : input_registers(registers)) inputs.push_back(registers.at(reg));
    return inputs;
  }

  nn::Child<Body> make_module(const Registers& registers) const {
    const auto module = nn::make<Body>();
    for (const Step& step : program_.steps) {
      if (!step.before || step.result < 0) continue;
      if (canonical(registers, step.result) != step.result) continue;
      module->adopt(fmt::format("r{}", step.result), step.role, registers.at(step.result));
    }
    return module;
  }

  /// The registers from before the module, made again.
  Registers prepare() const {
    Registers registers;
    for (const Step& step : program_.steps) {
      if (!step.before) continue;
      const Attempt made = attempt(step, registers, options_, false);
      if (made.refusal == kNothing && step.result >= 0) registers[step.result] = made.result;
    }
    return registers;
  }

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

  void compare_run(std::size_t run, const std::vector<Tensor>& outputs,
                   const Registers& registers) const {
    const Observation& seen = seen_[run];
    const std::string where = fmt::format("run {} of the Program, {}", run,
                                          run < kRunsOfMode ? "training" : "evaluation");
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const Array& array = reference_.registers.at(program_.outputs[i])->array;
      const std::string output = fmt::format("{}, output r{}", where, program_.outputs[i]);
      require(compare_spec(outputs[i], array), output);
      require(compare_exactly(read(outputs[i]), seen.outputs[i], false), output + " against eager");
    }
    std::size_t next = 0;
    for (const Step& step : program_.steps) {
      if (!step.before || step.result < 0) continue;
      require(compare_exactly(read(registers.at(step.result)), seen.state[next++], false),
              fmt::format("{}, r{} afterwards against eager", where, step.result));
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

  const Program& program_;
  const TrialOptions& options_;
  TrialResult result_;
  Reference reference_;
  Registers tensors_;
  std::map<const Step*, unsigned> refusals_;  // how each call came out eagerly
  std::vector<Observation> seen_;             // training runs, then those in evaluation
  std::vector<std::size_t> differentiated_;   // outputs that gradients flow from
  bool ambiguous_ = false;  // a refusal was permitted: eager and traced calls may differ in it
  std::string doing_;
};

}  // namespace

TrialResult run_trial(const Program& program, const TrialOptions& options) {
  return Trial(program, options).run();
}

}  // namespace tenon::op_fuzz
