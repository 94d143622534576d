#include "tests/fuzz/ops/eager_trial.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/random.h"
#include "tests/fuzz/ops/observe.h"

namespace tenon::op_fuzz {

void fail(const std::string& text) { throw Mismatch{text}; }

void require(const std::string& difference, const std::string& where) {
  if (!difference.empty()) fail(where + ": " + difference);
}

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

EagerTrial::EagerTrial(const Program& program, const TrialOptions& options, bool follows_errors)
    : program_(program), options_(options) {
  reference_.follows_errors = follows_errors;
}

void EagerTrial::run_eagerly() {
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

void EagerTrial::seed() {
  manual_seed(program_.seed);
  reference_.now.random = {program_.seed};
}

void EagerTrial::check_step(const Step& step) {
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
    // A GPU does not check indices: nothing follows from what such a call gives.
    const bool by_index = outcome.by_data && outcome.required == kValue;
    if (by_index && !options_.device.is_cpu()) return void(ambiguous_ = true);
    fail(fmt::format("{} was not refused; needed {}", doing_, names_of(outcome.required)));
  }
  ambiguous_ |= outcome.permitted != kNothing;
  compare(step, outcome, made.result);
}

bool EagerTrial::has_operands(const Step& step, const Registers& registers) {
  return std::all_of(step.operands.begin(), step.operands.end(),
                     [&](int reg) { return registers.contains(reg); });
}

void EagerTrial::compare(const Step& step, const Outcome& outcome, const Tensor& result) {
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

Tensor EagerTrial::tensor_of(const Check& check, const Outcome& outcome,
                             const Tensor& result) const {
  if (check.handle == outcome.result) return result;
  const HandlePtr& wanted = check.leaf ? check.leaf : check.handle;
  for (const auto& [reg, handle] : reference_.registers) {
    if (handle != wanted) continue;
    const Tensor& tensor = tensors_.at(reg);
    return check.leaf ? tensor.grad() : tensor;
  }
  return {};
}

void EagerTrial::check_memory(const Step& step, const Outcome& outcome,
                              const Tensor& result) const {
  if (outcome.result->array.numel() == 0) return;
  for (const int reg : step.operands) {
    const bool wanted = reference_.registers.at(reg)->array.memory == outcome.result->array.memory;
    const bool shares = tensors_.at(reg).storage() == result.storage();
    if (shares == wanted) continue;
    fail(fmt::format("{}: the result {} memory with r{}", doing_, shares ? "shares" : "shares no",
                     reg));
  }
}

void EagerTrial::check_all(const std::string& when) const {
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

std::vector<Tensor> EagerTrial::check_body() {
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

Seen EagerTrial::seen_of(int reg) const {
  const Array& array = reference_.registers.at(reg)->array;
  return {read(tensors_.at(reg)), reference_.follows_errors ? array.errors() : Numbers()};
}

void EagerTrial::observe(const std::vector<Tensor>& outputs) {
  check_all("after the module");
  Observation seen;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    seen.outputs.push_back(seen_of(program_.outputs[i]));
  }
  for (const Step& step : program_.steps) {
    if (step.before && step.result >= 0) seen.state.push_back(seen_of(step.result));
  }
  if (program_.wants_gradients && !ambiguous_) check_gradients(seen);
  seen_.push_back(std::move(seen));
}

void EagerTrial::ask_for_gradients(Registers& registers) const {
  if (!program_.wants_gradients) return;
  for (const Step& step : program_.steps) {
    if (!step.before || step.result < 0) continue;
    Tensor& tensor = registers.at(step.result);
    if (is_float(tensor.dtype()) && step.role == Role::input) tensor.requires_grad_();
  }
}

std::vector<int> EagerTrial::leaves(const Registers& registers) const {
  std::vector<int> result;
  for (const Step& step : program_.steps) {
    if (!step.before || step.result < 0) continue;
    if (canonical(registers, step.result) != step.result) continue;
    if (registers.at(step.result).requires_grad()) result.push_back(step.result);
  }
  return result;
}

Numbers EagerTrial::cotangent_values(std::size_t output, std::int64_t count) {
  Numbers result;
  for (std::int64_t i = 0; i < count; ++i) {
    result.push_back(static_cast<Number>((i * 5 + static_cast<std::int64_t>(output)) % 7 - 3) / 2);
  }
  return result;
}

Tensor EagerTrial::cotangent(std::size_t output, const Array& array) const {
  std::vector<double> values;
  for (const Number value : cotangent_values(output, array.numel())) {
    values.push_back(static_cast<double>(value));
  }
  return tensor(std::span<const double>(values),
                Shape(std::vector<Dim>(array.sizes.begin(), array.sizes.end())),
                {array.dtype, options_.device});
}

void EagerTrial::check_gradients(Observation& seen) {
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

Check EagerTrial::gradient_check(const HandlePtr& leaf, const Gradients& wanted) {
  for (const auto& [handle, flow] : wanted.leaves) {
    if (handle != leaf) continue;
    return {leaf, flow.value, allowed_error(flow, leaf->array.dtype), false};
  }
  return {};
}

void EagerTrial::compare_gradient(const Tensor& found, const Check& wanted,
                                  const std::string& where) {
  if (found.defined() != (wanted.handle != nullptr)) {
    fail(where + (found ? " flows where nothing depends on it" : " is missing"));
  }
  if (!found) return;
  require(compare_spec(found, wanted.handle->array), where);
  require(compare_values(read(found), wanted), where);
}

int EagerTrial::canonical(const Registers& registers, int reg) {
  for (const auto& [other, tensor] : registers) {
    if (tensor.is_same(registers.at(reg))) return other;
  }
  return reg;
}

Role EagerTrial::role_of(const Registers& registers, int reg) const {
  const int first = canonical(registers, reg);
  for (const Step& step : program_.steps) {
    if (step.result == first) return step.role;
  }
  return Role::input;
}

std::vector<int> EagerTrial::input_registers(const Registers& registers) const {
  std::vector<int> result;
  for (const Step& step : program_.steps) {
    if (!step.before || step.result < 0 || step.role != Role::input) continue;
    if (canonical(registers, step.result) == step.result) result.push_back(step.result);
  }
  return result;
}

std::vector<Tensor> EagerTrial::inputs_of(const Registers& registers) const {
  std::vector<Tensor> inputs;
  for (const int reg : input_registers(registers)) inputs.push_back(registers.at(reg));
  return inputs;
}

nn::Child<Body> EagerTrial::make_module(const Registers& registers) const {
  const auto module = nn::make<Body>();
  for (const Step& step : program_.steps) {
    if (!step.before || step.result < 0) continue;
    if (canonical(registers, step.result) != step.result) continue;
    module->adopt(fmt::format("r{}", step.result), step.role, registers.at(step.result));
  }
  return module;
}

Registers EagerTrial::prepare() const {
  Registers registers;
  for (const Step& step : program_.steps) {
    if (!step.before) continue;
    const Attempt made = attempt(step, registers, options_, false);
    if (made.refusal == kNothing && step.result >= 0) registers[step.result] = made.result;
  }
  return registers;
}

}  // namespace tenon::op_fuzz
