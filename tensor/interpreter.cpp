#include "tensor/interpreter.h"

#include <algorithm>
#include <exception>
#include <optional>

#include "tensor/calls/taken_numbers.h"
#include "tensor/detail/follow_generator.h"
#include "tensor/device_backend.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tensor/support/check.h"
#include "tensor/support/launch_count.h"
#include "tensor/support/seams.h"

namespace tenon {
namespace {

class EagerInterpreter final : public Interpreter {
 public:
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    return apply_eager(op, inputs, attrs);
  }
};

/// Runs shape inference only: what an op with a decomposition but no inference of its own needs.
class SpecInterpreter final : public Interpreter {
 public:
  bool is_recording() const override { return true; }
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    std::vector<const TensorSpec*> specs;
    for (const Tensor& input : inputs) specs.push_back(input ? &input.spec() : nullptr);
    std::vector<Tensor> outputs;
    for (TensorSpec& spec : infer(op, specs, attrs)) {
      outputs.push_back(Tensor::symbolic(std::move(spec)));
    }
    return outputs;
  }
};

struct PushedInterpreter {
  Interpreter* interpreter = nullptr;
  std::int64_t outer_site = 0;  // the next one before it was pushed
  int grad_guards = 0;          // alive when it was pushed
};

struct ThreadState {
  std::vector<PushedInterpreter> interpreters;
  std::vector<ModuleFrame> modules;
  std::int64_t next_site = 0;
  bool forward_begun = false;  // this outermost module call has its forward number:
  RandomState forward;         // what it draws with, a state of
  const Generator* generator = nullptr;
  std::optional<RandomState> outer_call;  // the same of a random call outside of modules, under way
  const CallSite* replayed = nullptr;     // what a CallSiteScope stands for
  bool grad_enabled = true;
  int grad_guards = 0;  // alive
};

thread_local ThreadState state;

EagerInterpreter& eager() {
  static auto& interpreter = *new EagerInterpreter;  // never destroyed: threads may outlive main
  return interpreter;
}

/// Copies between two layouts of one device and dtype that do not overlap.
void copy_data(const Tensor& source, const Tensor& target) {
  static const Op& clone = get_op("clone");
  const TensorView from = source.view_of_data();
  const TensorView to = target.view_of_data();
  KernelArgs args{.op = &clone, .inputs = {&from, 1}, .outputs = {&to, 1}};
  args.stream = device_backend(to.device.type).stream(to.device.index);
  const Kernel* kernel = select_kernel(clone, to.device.type, args);
  TENON_INTERNAL(kernel != nullptr, "no copy kernel on {}", to.device.to_string());
  if (to.numel() == 0) return;
  WorkScope scope;
  scope.reads(*source.storage());
  scope.writes(*target.storage());
  scope.begin();
  detail::run_kernel(*kernel, args);
}

/// A row-major copy of `input` on its device.
Tensor packed_copy(const Tensor& input) {
  Tensor result = empty(input.layout().sizes, {input.dtype(), input.device()});
  copy_data(input, result);
  return result;
}

Extents concrete_sizes(const Shape& shape) {
  Extents sizes;
  for (const Dim& dim : shape) sizes.push_back(dim.value());
  return sizes;
}

/// The output of a view op: an alias where strides allow it, else a view of a packed copy.
Tensor apply_view(const Op& op, const Tensor& input, const TensorSpec& output, const Attrs& attrs) {
  const Extents sizes = concrete_sizes(output.shape);
  if (const auto layout = op.view(input.layout(), sizes, attrs)) {
    return Tensor(input.storage(), output.dtype, *layout);
  }
  const Tensor packed = packed_copy(input);
  const auto layout = op.view(packed.layout(), sizes, attrs);
  TENON_INTERNAL(layout.has_value(), "[{}] no view of a contiguous tensor", op.name);
  return Tensor(packed.storage(), output.dtype, *layout);
}

void require_eager(const Op& op, std::span<const Tensor> inputs) {
  for (const Tensor& input : inputs) {
    TENON_CHECK(!input || input.is_eager(), TraceError,
                "[{}] an operand holds no data: it was made inside a trace or a pattern and used "
                "outside of it",
                op.name);
  }
}

/// Results that a kernel will fill.
std::vector<Tensor> allocate(const Op& op, const std::vector<TensorSpec>& specs) {
  try {
    std::vector<Tensor> outputs;
    for (const TensorSpec& spec : specs) {
      outputs.push_back(empty(concrete_sizes(spec.shape), {spec.dtype, spec.device}));
    }
    return outputs;
  } catch (const OutOfMemory& error) {
    throw OutOfMemory(fmt::format("[{}] {}", op.name, error.what()), error.requested,
                      error.free_bytes, error.live_bytes);
  }
}

}  // namespace

void Interpreter::assign(const Tensor& target, const Tensor& source) {
  const TensorView to = target.view_of_data();
  const TensorView from = source.view_of_data();
  if (to.data != from.data || !(to.strides == from.strides)) {
    // The source's elements as they are now, where writing the target would change them.
    copy_data(overlap(to, from) ? packed_copy(source) : source, target);
  }
  target.storage()->bump_version();
}

InterpreterGuard::InterpreterGuard(Interpreter& interpreter) {
  state.interpreters.push_back({&interpreter, state.next_site, state.grad_guards});
  if (interpreter.is_recording()) state.next_site = 0;
}
InterpreterGuard::~InterpreterGuard() {
  const PushedInterpreter& last = state.interpreters.back();
  if (last.interpreter->is_recording()) state.next_site = last.outer_site;
  state.interpreters.pop_back();
}

Interpreter& current_interpreter() {
  return state.interpreters.empty() ? eager() : *state.interpreters.back().interpreter;
}

const ModuleFrame* current_module() {
  if (state.replayed) return state.replayed->in_module ? &state.replayed->frame : nullptr;
  return state.modules.empty() ? nullptr : &state.modules.back();
}

namespace {

/// What a random call of this thread draws with now.
RandomState current_random() {
  if (state.outer_call) return *state.outer_call;  // a hook's, where backward replays a call
  if (state.replayed) return state.replayed->random;
  if (!state.modules.empty() && state.forward_begun) return state.forward;
  return default_generator().state();
}

}  // namespace

CallSite current_call_site() {
  CallSite site;
  if (const ModuleFrame* frame = current_module()) {
    site.in_module = true;
    site.frame = *frame;
  }
  site.random = current_random();
  site.call = current_interpreter().current_call();
  return site;
}

CallSiteScope::CallSiteScope(const CallSite& site) : outer_(state.replayed) {
  state.replayed = &site;
  current_interpreter().resume_call(site.call);
}
CallSiteScope::~CallSiteScope() {
  current_interpreter().leave_call();
  state.replayed = outer_;
}

DropoutMode Interpreter::current_mode() const {
  if (is_recording()) return DropoutMode::follow;
  const ModuleFrame* frame = current_module();
  return frame == nullptr || frame->training ? DropoutMode::train : DropoutMode::eval;
}

DropoutMode current_mode() { return current_interpreter().current_mode(); }

bool grad_enabled() {
  const bool is_recorded = !state.interpreters.empty();
  if (is_recorded && state.interpreters.back().grad_guards == state.grad_guards) {
    state.interpreters.back().interpreter->on_grad_mode_read();
  }
  return state.grad_enabled;
}
bool detail::grad_mode() { return state.grad_enabled; }
GradModeGuard::GradModeGuard(bool enabled) : outer_(state.grad_enabled) {
  state.grad_enabled = enabled;
  ++state.grad_guards;
}
GradModeGuard::~GradModeGuard() {
  state.grad_enabled = outer_;
  --state.grad_guards;
}

namespace {

void begin_forward() {
  if (state.forward_begun || current_interpreter().is_recording()) return;
  state.generator = &default_generator();
  state.forward = default_generator().next_forward();
  state.forward_begun = true;
}

}  // namespace

void detail::follow_generator(const Generator& generator) {
  if (state.forward_begun && state.generator == &generator) state.forward = generator.state();
}

bool counts_random_sites() {
  // A hook that backward calls is outside of the modules whose calls are replayed around it.
  return current_interpreter().is_recording() || (!state.modules.empty() && !state.replayed);
}

std::int64_t next_dropout_site(bool draws) {
  if (!counts_random_sites()) {
    return default_generator().next_outer_site(&state.outer_call.emplace());
  }
  TENON_CHECK(state.next_site < kFirstOuterSite, ValueError,
              "more than {} random calls in one forward", kFirstOuterSite);
  if (draws) begin_forward();
  return state.next_site++;
}

ops::TakenNumbers::TakenNumbers(Generator& generator)
    : before_(generator),
      outer_call_(state.outer_call),
      site_(state.next_site),
      forward_begun_(state.forward_begun),
      exceptions_(std::uncaught_exceptions()) {}

ops::TakenNumbers::~TakenNumbers() {
  state.outer_call = outer_call_;
  if (std::uncaught_exceptions() == exceptions_) return;
  before_.give_back();
  state.next_site = site_;
  state.forward_begun = forward_begun_;
}

RandomSiteScope::RandomSiteScope(std::int64_t first) : outer_(state.next_site) {
  state.next_site = first;
}
RandomSiteScope::~RandomSiteScope() { state.next_site = outer_; }

ModuleScope::ModuleScope(const ModuleFrame& frame, std::span<const Tensor> inputs) : frame_(frame) {
  if (state.modules.empty()) {
    state.next_site = 0;
    state.forward_begun = false;
    if (frame.training) begin_forward();
  }
  current_interpreter().enter_module(frame_, inputs);
  state.modules.push_back(frame_);
}

ModuleScope::~ModuleScope() { state.modules.pop_back(); }

void ModuleScope::finish(std::span<const Tensor> outputs) {
  current_interpreter().exit_module(frame_, outputs);
}

std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs, const Attrs& attrs) {
  const bool variadic = !op.operands.empty() && op.operands.back().variadic;
  TENON_CHECK(variadic ? inputs.size() >= op.operands.size() : inputs.size() <= op.operands.size(),
              ValueError, "[{}] {} operands given; needed {}{}", op.name, inputs.size(),
              variadic ? "at least " : "", op.operands.size());
  for (std::size_t i = 0; i < std::max(inputs.size(), op.operands.size()); ++i) {
    const Operand& operand = op.operands[std::min(i, op.operands.size() - 1)];
    TENON_CHECK(operand.optional || (i < inputs.size() && inputs[i].defined()), ValueError,
                "[{}] operand '{}' is undefined", op.name, operand.name);
  }
  Interpreter& inner = current_interpreter();
  const bool recorded = state.grad_enabled && !op.not_differentiable && inner.records_gradients() &&
                        std::any_of(inputs.begin(), inputs.end(),
                                    [](const Tensor& input) { return input.requires_grad(); });
  return recorded ? autograd::record(op, inputs, attrs, inner) : inner.apply(op, inputs, attrs);
}

Tensor apply1(const Op& op, std::initializer_list<Tensor> inputs, const Attrs& attrs) {
  return apply(op, std::span(inputs.begin(), inputs.size()), attrs).at(0);
}

std::vector<Tensor> apply_eager(const Op& op, std::span<const Tensor> inputs, const Attrs& attrs) {
  require_eager(op, inputs);
  const ModuleFrame* frame = current_module();
  const bool training = frame == nullptr || frame->training;
  std::vector<const TensorSpec*> specs;
  for (const Tensor& input : inputs) specs.push_back(input ? &input.spec() : nullptr);
  const std::vector<TensorSpec> output_specs = infer(op, specs, attrs);
  if (op.identity && op.identity(attrs, training)) return {inputs[0]};
  if (op.view) return {apply_view(op, inputs[0], output_specs[0], attrs)};

  const Device device = output_specs.at(0).device;
  const std::vector<Tensor> outputs = allocate(op, output_specs);
  std::vector<TensorView> input_views(std::max(inputs.size(), op.operands.size()));
  std::vector<TensorView> output_views;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i]) input_views[i] = inputs[i].view_of_data();
  }
  for (const Tensor& output : outputs) output_views.push_back(output.view_of_data());
  KernelArgs args{&op,
                  input_views,
                  output_views,
                  &attrs,
                  training,
                  op.has(Trait::random) ? current_random() : RandomState(),
                  device_backend(device.type).stream(device.index)};
  const Kernel* kernel = select_kernel(op, device.type, args);
  if (kernel == nullptr) {
    TENON_CHECK(op.decompose != nullptr, DeviceError, "[{}] has no implementation on {} for {}",
                op.name, device.to_string(),
                specs.empty() || !specs[0] ? "these operands" : specs[0]->to_string());
    const InterpreterGuard guard(eager());
    return op.decompose(inputs, attrs);
  }
  std::vector<Tensor> packed;  // keeps the copies alive during the call
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const TensorView& view = input_views[i];
    if (!view.present) continue;
    const bool accepted =
        kernel->accepts ? kernel->accepts(static_cast<int>(i), view) : view.is_contiguous();
    if (accepted) continue;
    packed.push_back(packed_copy(inputs[i]));
    input_views[i] = packed.back().view_of_data();
  }
  std::shared_ptr<Storage> workspace;
  if (const std::size_t bytes = kernel->workspace_bytes ? kernel->workspace_bytes(args) : 0) {
    workspace = Storage::allocate(bytes, device);
    args.workspace = workspace->data();
  }
  WorkScope scope;
  for (const Tensor& input : inputs) {
    if (input) scope.reads(*input.storage());
  }
  for (const Tensor& copy : packed) scope.reads(*copy.storage());
  for (const Tensor& output : outputs) scope.writes(*output.storage());
  if (workspace) scope.writes(*workspace);
  scope.begin();
  detail::run_kernel(*kernel, args);
  return outputs;
}

std::vector<TensorSpec> infer_by_decomposition(const Op& op,
                                               std::span<const TensorSpec* const> inputs,
                                               const Attrs& attrs) {
  SpecInterpreter interpreter;
  const InterpreterGuard guard(interpreter);
  std::vector<Tensor> tensors;
  for (const TensorSpec* spec : inputs) {
    tensors.push_back(spec ? Tensor::symbolic(*spec) : Tensor());
  }
  tensors.resize(std::max(tensors.size(), op.operands.size()));
  std::vector<TensorSpec> outputs;
  for (const Tensor& output : op.decompose(tensors, attrs)) outputs.push_back(output.spec());
  return outputs;
}

}  // namespace tenon
