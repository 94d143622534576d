#include "schedule/pattern.h"

#include <algorithm>
#include <regex>

#include "tensor/detail/check.h"
#include "tensor/interpreter.h"

namespace tenon {
namespace {

class PatternRecorder;

class PatternValue final : public TracedPayload {
 public:
  PatternValue(const PatternRecorder* maker, int number) : recorder(maker), id(number) {}
  Dim size(int axis) const override { return Dim::of_pattern(id, axis); }
  bool is_pattern() const override { return true; }
  const PatternRecorder* recorder;
  int id;
};

class PatternRecorder final : public Interpreter {
 public:
  explicit PatternRecorder(int parameters) : next_value_(parameters) {
    pattern.parameters = parameters;
  }

  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    Pattern::Call call;
    call.op = &op;
    call.attrs = attrs;
    for (const Tensor& input : inputs) call.inputs.push_back(value_of(input, op.name));
    call.inputs.resize(std::max(inputs.size(), op.operands.size()), -1);
    return add(std::move(call));
  }

  std::vector<Tensor> add(Pattern::Call call) {
    call.output = next_value_++;
    std::vector<Tensor> outputs{value(call.output)};
    pattern.calls.push_back(std::move(call));
    return outputs;
  }

  Tensor value(int id) const {
    return Tensor::symbolic({}, std::make_shared<PatternValue>(this, id));
  }

  int value_of(const Tensor& tensor, std::string_view where) const {
    if (!tensor) return -1;
    const auto* known = dynamic_cast<const PatternValue*>(tensor.impl()->payload.get());
    TENON_CHECK(known && known->recorder == this, ScheduleError,
                "[{}] a pattern computes on its parameters alone; an operand is another tensor",
                where);
    return known->id;
  }

  bool is_pattern() const override { return true; }
  Pattern pattern;

 private:
  int next_value_;
};

std::string text_of(const Pattern& pattern, int value) {
  const Pattern::Call* call = pattern.maker(value);
  if (value < 0) return "none";
  if (call == nullptr) return fmt::format("%{}", value);
  std::vector<std::string> parts;
  if (call->op == nullptr) parts.push_back(fmt::format("\"{}\"", call->regex));
  for (int input : call->inputs) parts.push_back(text_of(pattern, input));
  if (const std::string attrs = call->attrs.to_string(); !attrs.empty()) parts.push_back(attrs);
  return fmt::format("{}({})", call->op ? call->op->name : "call_module", fmt::join(parts, ", "));
}

}  // namespace

Tensor call_module(const std::string& regex, const std::vector<Tensor>& inputs) {
  auto* recorder = dynamic_cast<PatternRecorder*>(&current_interpreter());
  TENON_CHECK(recorder != nullptr, TraceError,
              "call_module(\"{}\") was called outside of a pattern; call the module itself",
              regex.substr(0, 80));
  try {
    std::regex check(regex);
  } catch (const std::regex_error& error) {
    detail::fail<ScheduleError>("call_module: '{}' is not a valid regular expression: {}",
                                regex.substr(0, 80), error.what());
  }
  Pattern::Call call;
  call.regex = regex;
  for (const Tensor& input : inputs) call.inputs.push_back(recorder->value_of(input, regex));
  return recorder->add(std::move(call)).at(0);
}

const Pattern::Call* Pattern::maker(int value) const {
  const auto found = std::find_if(calls.begin(), calls.end(),
                                  [&](const Call& call) { return call.output == value; });
  return found == calls.end() ? nullptr : &*found;
}

std::string Pattern::to_string() const { return text_of(*this, output); }

Pattern record_pattern(
    int parameters, const std::function<std::vector<Tensor>(std::span<const Tensor>)>& function) {
  PatternRecorder recorder(parameters);
  std::vector<Tensor> inputs;
  for (int i = 0; i < parameters; ++i) inputs.push_back(recorder.value(i));
  const InterpreterGuard guard(recorder);
  const std::vector<Tensor> outputs = function(inputs);
  Pattern pattern = std::move(recorder.pattern);
  TENON_CHECK(outputs.size() == 1, ScheduleError, "a pattern returns one tensor; this one {}",
              outputs.size());
  pattern.output = recorder.value_of(outputs[0], "pattern");
  TENON_CHECK(pattern.maker(pattern.output) != nullptr, ScheduleError,
              "the pattern calls no op: it returns a parameter as it is");
  // What the result does not depend on would match nothing in particular.
  std::vector<bool> used(static_cast<std::size_t>(parameters) + pattern.calls.size(), false);
  used[static_cast<std::size_t>(pattern.output)] = true;
  for (auto call = pattern.calls.rbegin(); call != pattern.calls.rend(); ++call) {
    TENON_CHECK(used[static_cast<std::size_t>(call->output)], ScheduleError,
                "the pattern calls {} without using its result",
                call->op ? call->op->name : "call_module");
    for (int input : call->inputs) {
      if (input >= 0) used[static_cast<std::size_t>(input)] = true;
    }
  }
  for (int i = 0; i < parameters; ++i) {
    TENON_CHECK(used[static_cast<std::size_t>(i)], ScheduleError,
                "the pattern never uses its parameter {}", i);
  }
  return pattern;
}

Pattern pattern_of_decomposition(const Op& op, const Attrs& attrs) {
  TENON_INTERNAL(op.decompose && op.pattern_attrs, "[{}] is no pattern", op.name);
  return record_pattern(static_cast<int>(op.operands.size()), [&](std::span<const Tensor> tensors) {
    return op.decompose(tensors, attrs);
  });
}

}  // namespace tenon
