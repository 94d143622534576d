#include "schedule/pattern.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "schedule/matching/module_selector.h"
#include "tensor/interpreter.h"
#include "tensor/support/check.h"
#include "tensor/support/text.h"

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

/// How many results a call of an op offers: without shapes it is unknown how many there are.
constexpr int kResultsPerCall = 8;

class PatternRecorder final : public Interpreter {
 public:
  explicit PatternRecorder(int parameters) {
    pattern.parameters = parameters;
    pattern.values.resize(static_cast<std::size_t>(parameters));
  }

  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    Pattern::Call call;
    call.op = &op;
    call.attrs = attrs;
    call.num_outputs = kResultsPerCall;
    for (const Tensor& input : inputs) call.inputs.push_back(operand(input, op.name));
    call.inputs.resize(std::max(inputs.size(), op.operands.size()), -1);
    return add(std::move(call));
  }

  std::vector<Tensor> add(Pattern::Call call) {
    const int index = static_cast<int>(pattern.calls.size());
    call.output = static_cast<int>(pattern.values.size());
    std::vector<Tensor> outputs;
    for (int i = 0; i < call.num_outputs; ++i) {
      outputs.push_back(value(static_cast<int>(pattern.values.size())));
      pattern.values.push_back({Pattern::Value::Kind::result, index, i});
    }
    pattern.calls.push_back(std::move(call));
    return outputs;
  }

  Tensor value(int id) const {
    return Tensor::symbolic({}, std::make_shared<PatternValue>(this, id));
  }

  /// The value behind a tensor that a call reads or the pattern returns, counted as a use.
  int operand(const Tensor& tensor, std::string_view where) {
    if (!tensor) return -1;
    const int id = value_of(tensor, where);
    ++pattern.values[static_cast<std::size_t>(id)].uses;
    return id;
  }

  void enter_module(const ModuleFrame& frame, std::span<const Tensor>) override {
    const auto& module = *static_cast<const nn::Module*>(frame.module);
    for (const auto& list : {module.named_parameters(), module.named_buffers()}) {
      for (const auto& [name, tensor] : list) states_.try_emplace(tensor.impl().get(), -1);
    }
  }
  /// As under the tracer, the handle stands for the new value from here on.
  void assign(const Tensor& target, const Tensor& source) override {
    const auto id = static_cast<std::size_t>(value_of(target, "copy_"));
    TENON_CHECK(pattern.values[id].kind == Pattern::Value::Kind::result, TraceError,
                "[copy_] a pattern cannot change its parameters or a module's in place; change a "
                "result of an op");
    value_of(source, "copy_");
    target.impl()->payload = source.impl()->payload;
  }
  // What a module's parameters are in a pattern is no leaf of any backward.
  bool records_gradients() const override { return false; }
  bool is_pattern() const override { return true; }
  Pattern pattern;

 private:
  int value_of(const Tensor& tensor, std::string_view where) {
    const auto* known = dynamic_cast<const PatternValue*>(tensor.impl()->payload.get());
    if (known != nullptr && known->recorder == this) return known->id;
    const auto state = states_.find(tensor.impl().get());
    TENON_CHECK(state != states_.end(), ScheduleError,
                "[{}] a pattern computes on its parameters alone; an operand is another tensor",
                where);
    if (state->second < 0) {
      state->second = static_cast<int>(pattern.values.size());
      pattern.values.push_back({Pattern::Value::Kind::state});
    }
    return state->second;
  }

  std::unordered_map<const TensorImpl*, int> states_;  // of called modules: their value, or -1
};

PatternRecorder& current_recorder(const std::string& what) {
  auto* recorder = dynamic_cast<PatternRecorder*>(&current_interpreter());
  TENON_CHECK(recorder != nullptr, TraceError,
              "call_module({}) was called outside of a pattern; call the module itself", what);
  return *recorder;
}

Tensor record_module(PatternRecorder& recorder, Pattern::Call call,
                     const std::vector<Tensor>& inputs) {
  for (const Tensor& input : inputs) call.inputs.push_back(recorder.operand(input, "call_module"));
  return recorder.add(std::move(call)).at(0);
}

// --- what a pattern must be -------------------------------------------------------------------------

void check_outputs(const Pattern& pattern) {
  TENON_CHECK(!pattern.calls.empty(), ScheduleError,
              "the pattern calls no op: it returns a parameter as it is");
  TENON_CHECK(!pattern.outputs.empty(), ScheduleError, "the pattern returns no tensor");
  for (std::size_t i = 0; i < pattern.outputs.size(); ++i) {
    const int output = pattern.outputs[i];
    TENON_CHECK(output >= 0, ScheduleError, "the pattern returns an undefined tensor as result {}",
                i);
    TENON_CHECK(pattern.maker(output) != nullptr, ScheduleError,
                "the pattern returns a parameter as it is, as result {}; needed results of ops", i);
    const auto end = pattern.outputs.begin() + static_cast<std::ptrdiff_t>(i);
    TENON_CHECK(std::find(pattern.outputs.begin(), end, output) == end, ScheduleError,
                "the pattern returns the result of {} twice", pattern.maker(output)->name());
  }
}

/// What the results do not depend on would match nothing in particular.
void check_uses(const Pattern& pattern) {
  std::vector<bool> needed(pattern.values.size(), false);
  for (int output : pattern.outputs) needed[static_cast<std::size_t>(output)] = true;
  for (auto call = pattern.calls.rbegin(); call != pattern.calls.rend(); ++call) {
    const auto first = needed.begin() + call->output;
    TENON_CHECK(std::find(first, first + call->num_outputs, true) != first + call->num_outputs,
                ScheduleError, "the pattern calls {} without using its result", call->name());
    for (int input : call->inputs) {
      if (input >= 0) needed[static_cast<std::size_t>(input)] = true;
    }
  }
  for (int i = 0; i < pattern.parameters; ++i) {
    TENON_CHECK(needed[static_cast<std::size_t>(i)], ScheduleError,
                "the pattern never uses its parameter {}", i);
  }
}

/// A search goes from value to value: it would have to try all pairs of what nothing connects.
void check_connected(const Pattern& pattern) {
  std::vector<int> leader(pattern.values.size());
  std::iota(leader.begin(), leader.end(), 0);
  const auto find = [&](int value) {
    while (leader[static_cast<std::size_t>(value)] != value) {
      value = leader[static_cast<std::size_t>(value)];
    }
    return value;
  };
  for (const Pattern::Call& call : pattern.calls) {
    const auto join = [&](int value) {
      leader[static_cast<std::size_t>(find(value))] = find(call.output);
    };
    for (int i = 1; i < call.num_outputs; ++i) join(call.output + i);
    for (int input : call.inputs) {
      if (input >= 0) join(input);
    }
  }
  for (int output : pattern.outputs) {
    TENON_CHECK(find(output) == find(pattern.outputs[0]), ScheduleError,
                "the results of the pattern share no value: nothing connects {} with {}; find them "
                "by patterns of their own",
                pattern.maker(output)->name(), pattern.maker(pattern.outputs[0])->name());
  }
}

/// Prints calls nested, and those whose result has several uses once, in front.
class PatternText {
 public:
  explicit PatternText(const Pattern& pattern) : pattern_(pattern) {}
  std::string text() {
    std::vector<std::string> results;
    for (int output : pattern_.outputs) results.push_back(of(output));
    return definitions_ + fmt::format("{}", fmt::join(results, ", "));
  }

 private:
  std::string of(int value) {
    if (value < 0) return "none";
    const Pattern::Call* call = pattern_.maker(value);
    const auto& info = pattern_.values[static_cast<std::size_t>(value)];
    const std::string name = fmt::format("%{}", value);
    if (call == nullptr || named_.contains(value)) return name;
    std::vector<std::string> parts;
    if (!call->regex.empty()) parts.push_back(fmt::format("\"{}\"", call->regex));
    for (int input : call->inputs) parts.push_back(of(input));
    if (const std::string attrs = call->attrs.to_string(); !attrs.empty()) parts.push_back(attrs);
    std::string text = fmt::format("{}({})", call->name(), fmt::join(parts, ", "));
    if (!call->type.empty()) text.insert(call->name().size(), "<" + call->type + ">");
    if (info.index > 0) text += fmt::format("[{}]", info.index);
    if (info.uses <= 1) return text;
    definitions_ += name + " = " + text + "; ";
    named_.emplace(value, true);
    return name;
  }

  const Pattern& pattern_;
  std::string definitions_;
  std::unordered_map<int, bool> named_;
};

}  // namespace

Tensor call_module(const std::string& regex, const std::vector<Tensor>& inputs) {
  PatternRecorder& recorder = current_recorder("\"" + regex.substr(0, 80) + "\"");
  detail::ModuleSelector::by_name("call_module", regex);  // refuses an invalid one where it stands
  Pattern::Call call;
  call.regex = regex;
  return record_module(recorder, std::move(call), inputs);
}

namespace detail {

std::string module_type_name(const std::type_info& type) { return text::class_name(type.name()); }

Tensor call_module_of_type(const std::string& type, const std::vector<Tensor>& inputs) {
  Pattern::Call call;
  call.type = type;
  return record_module(current_recorder(type), std::move(call), inputs);
}

}  // namespace detail

const std::string& Pattern::Call::name() const {
  static const auto& module = *new std::string("call_module");  // never destroyed
  return op ? op->name : module;
}

const Pattern::Call* Pattern::maker(int value) const {
  const int call = value < 0 ? -1 : values[static_cast<std::size_t>(value)].call;
  return call < 0 ? nullptr : &calls[static_cast<std::size_t>(call)];
}

std::string Pattern::to_string() const { return PatternText(*this).text(); }

Pattern record_pattern(
    int parameters, const std::function<std::vector<Tensor>(std::span<const Tensor>)>& function) {
  PatternRecorder recorder(parameters);
  std::vector<Tensor> inputs;
  for (int i = 0; i < parameters; ++i) inputs.push_back(recorder.value(i));
  const InterpreterGuard guard(recorder);
  for (const Tensor& output : function(inputs)) {
    recorder.pattern.outputs.push_back(recorder.operand(output, "return"));
  }
  Pattern pattern = std::move(recorder.pattern);
  check_outputs(pattern);
  check_uses(pattern);
  check_connected(pattern);
  return pattern;
}

Pattern pattern_of_decomposition(const Op& op, const Attrs& attrs) {
  TENON_INTERNAL(op.decompose && op.pattern_attrs, "[{}] is no pattern", op.name);
  return record_pattern(static_cast<int>(op.operands.size()), [&](std::span<const Tensor> tensors) {
    return op.decompose(tensors, attrs);
  });
}

}  // namespace tenon
