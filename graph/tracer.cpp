#include "graph/tracer.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <limits>
#include <utility>

#include "tensor/functional.h"
#include "tensor/ops/attributes.h"
#include "tensor/support/check.h"
#include "tensor/support/new_handle.h"

namespace tenon {

/// The value of a Graph under construction that a tensor stands for.
class GraphBuilder::TracedValue final : public TracedPayload {
 public:
  TracedValue(const GraphBuilder* maker, const Handle& traced, Shape shape)
      : builder(maker->number_), handle(traced), shape_(std::move(shape)) {}
  Dim size(int axis) const override { return shape_[axis]; }
  bool is_pattern() const override { return false; }
  std::uint64_t builder;  // its number: another may come to stand where this one stood
  Handle handle;

 private:
  Shape shape_;
};

namespace {

/// Of a captured value: later changes in place do not concern it.
constexpr std::uint64_t kCaptured = std::numeric_limits<std::uint64_t>::max();

/// Whether eager code may find the result in the memory of operand 0, in some mode.
bool may_alias(const Op& op, const Attrs& attrs) {
  if (op.view) return true;
  return op.identity && (op.identity(attrs, true) || op.identity(attrs, false));
}

/// n + 1 for a constant called "constant_n", else 0.
int number_behind(const Value& constant) {
  constexpr std::string_view kPrefix = "constant_";
  int number = -1;
  const std::string_view name = constant.name;
  if (name.starts_with(kPrefix)) {
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), number);
  }
  return number + 1;
}

std::uint64_t next_builder() {
  static std::atomic<std::uint64_t> next = 0;
  return next++;
}

}  // namespace

GraphBuilder::GraphBuilder(Graph& graph, std::size_t position, CallId call)
    : graph_(graph), position_(position), number_(next_builder()) {
  if (call != kNone) calls_.push_back({call});
}

void GraphBuilder::act_as(CallId call) {
  root_mode_ = graph_.call(call).mode;
  calls_.at(0).mode = root_mode_;
}

void GraphBuilder::run_in_training() { outside_ = std::make_shared<std::atomic<bool>>(true); }

void GraphBuilder::know_states() {
  if (std::exchange(states_known_, true)) return;
  for (ValueId id : graph_.values()) {
    const Value& value = graph_.value(id);
    if (value.tensor) know(value.tensor, id);
    if (value.kind == ValueKind::constant) constants_ = std::max(constants_, number_behind(value));
  }
}

std::size_t GraphBuilder::new_memory(ValueId owner) {
  memories_.push_back({owner});
  return memories_.size() - 1;
}

GraphBuilder::KnownTensor& GraphBuilder::know(const Tensor& tensor, ValueId state) {
  const auto [known, is_new] = known_states_.try_emplace(tensor.impl().get());
  if (is_new) {
    known->second = {tensor, state, {state, new_memory(state)}};
    if (!on_storage_.empty()) note_storage(tensor);
  }
  return known->second;
}

/// Lists the tensor by its storage. What was changed there before it was seen concerns it too.
void GraphBuilder::note_storage(const Tensor& tensor) {
  std::vector<Tensor>& others = on_storage_[tensor.storage().get()];
  Memory& memory = memories_[known_states_.at(tensor.impl().get()).handle.memory];
  for (const Tensor& other : others) {
    const KnownTensor& known = known_states_.at(other.impl().get());
    const bool is_changed = known.handle.value != known.state;
    if (!is_changed || !overlap(tensor.view_of_data(), other.view_of_data())) continue;
    memory.changes = 1;
    memory.changed = known.state;
  }
  others.push_back(tensor);
}

Tensor GraphBuilder::traced(const Handle& handle) const {
  const TensorSpec& spec = graph_.value(handle.value).spec;
  return Tensor::symbolic(spec, std::make_shared<TracedValue>(this, handle, spec.shape));
}

Tensor GraphBuilder::tensor(ValueId id) {
  return id == kNone ? Tensor() : traced({id, new_memory(id)});
}

void GraphBuilder::add_tree(const ModuleTree& tree, const std::string& path_prefix) {
  const auto prefixed = [&](const std::string& path) {
    if (path_prefix.empty()) return path;
    return path.empty() ? path_prefix : path_prefix + "." + path;
  };
  for (const auto& [identity, module] : tree.modules) {
    if (module.path.empty() && !root_) root_ = module.training;
    ModuleTree::Module copy = module;
    copy.path = prefixed(module.path);
    modules_.emplace(identity, std::move(copy));
  }
  for (const ModuleTree::State& state : tree.states) {
    ModuleTree::State copy = state;
    copy.name = prefixed(state.name);
    states_.emplace(state.tensor.impl().get(), std::move(copy));
  }
}

GraphBuilder::Handle GraphBuilder::handle_of(const Tensor& tensor, std::string_view op_name) {
  if (!tensor) return {};
  if (const auto* traced = dynamic_cast<const TracedValue*>(tensor.impl()->payload.get())) {
    TENON_CHECK(traced->builder == number_, TraceError,
                "[{}] an operand comes from another trace; a traced tensor lives as long as its "
                "trace",
                op_name);
    return traced->handle;
  }
  TENON_CHECK(tensor.is_eager(), TraceError,
              "[{}] an operand holds neither data nor a traced value", op_name);
  know_states();
  const TensorImpl* identity = tensor.impl().get();
  if (const auto known = known_states_.find(identity); known != known_states_.end()) {
    return known->second.handle;
  }
  ValueKind kind = ValueKind::constant;
  std::string name;
  Tensor held = tensor;
  if (const auto state = states_.find(identity); state != states_.end()) {
    kind = state->second.kind;
    name = state->second.name;
    if (state->second.held) held = state->second.held;
  } else {
    name = fmt::format("constant_{}", constants_++);
  }
  return know(tensor, graph_.add_state(kind, std::move(name), std::move(held))).handle;
}

ValueId GraphBuilder::value_of(const Tensor& tensor, std::string_view op_name) {
  const Handle handle = handle_of(tensor, op_name);
  require_current(handle, op_name);
  return handle.value;
}

/// The call that reads a value, for errors: the node itself does not exist yet.
std::string GraphBuilder::reader(std::string_view op_name) const {
  const std::string path = calls_.empty() ? "" : graph_.call(calls_.back().id).path;
  return path.empty() ? std::string(op_name) : fmt::format("{}.{}", path, op_name);
}

void GraphBuilder::require_current(const Handle& handle, std::string_view op_name) const {
  if (handle.value == kNone) return;
  const Memory& memory = memories_[handle.memory];
  if (handle.seen >= memory.changes) return;
  TENON_CHECK(memory.owner == kNone || memory.changed != memory.owner, TraceError,
              "{} reads a view of {}, which was changed in place since; take the view again",
              reader(op_name), graph_.value_name(memory.owner));
  detail::fail<TraceError>(
      "{} reads {}, which may lie in the memory of {}, changed in place since; eager code would "
      "see the change in some mode: change a clone() instead",
      reader(op_name), graph_.value_name(handle.value), graph_.value_name(memory.changed));
}

DropoutMode GraphBuilder::current_mode() const {
  return calls_.empty() ? DropoutMode::follow : calls_.back().mode;
}

/// A module whose mode differs from the root's keeps it, whatever mode the Graph is lowered in.
Attrs GraphBuilder::settled(const Op& op, const Attrs& attrs) {
  if (calls_.empty() || mode_of(op, attrs) != DropoutMode::follow) return attrs;
  OpenCall& call = calls_.back();
  if (call.training && !std::exchange(call.is_noted, true)) {
    RecordedMode fact = mode_fact(call.module, graph_.call(call.id).type, call.training);
    if (fact.training != fact.root) graph_.mutable_facts().add(std::move(fact));
  }
  if (call.mode == DropoutMode::follow) return attrs;
  return attrs.with(find_mode(attrs), std::string(enum_name(call.mode)));
}

std::string GraphBuilder::owner_of(const void* module, const std::string& type) const {
  const auto found = modules_.find(module);
  if (found == modules_.end()) return fmt::format("a module of type {}", type);
  const std::string& path = found->second.path;
  return path.empty() ? "the root module" : fmt::format("module '{}'", path);
}

/// How a module's mode stands to its root's.
RecordedMode GraphBuilder::mode_fact(const void* module, const std::string& type,
                                     const ModeCell& mode) const {
  RecordedMode fact{owner_of(module, type), mode};
  fact.root = outside_ && !modules_.contains(module) ? outside_ : root_;
  if (!fact.root) fact.root = mode;  // the first module is the root
  fact.mode = root_mode_;
  if (*mode == *fact.root) return fact;
  fact.root = nullptr;
  fact.mode = *mode ? DropoutMode::train : DropoutMode::eval;
  return fact;
}

void GraphBuilder::on_mode_read(const ModuleFrame& module) {
  RecordedMode fact = mode_fact(module.module, *module.type, *module.mode);
  fact.read = module.training;
  graph_.mutable_facts().add(std::move(fact));
}

NodeId GraphBuilder::add(const Op& op, std::vector<ValueId> operands, Attrs attrs) {
  operands.resize(std::max(operands.size(), op.operands.size()), kNone);
  const NodeId id =
      graph_.add_node(op, std::move(operands), std::move(attrs), calls_.back().id, position_);
  position_ = std::min(position_, graph_.order().size() - 1) + 1;
  added_.push_back(id);
  graph_.rename(id, resumed_calls_ > 0 ? op.name + "_grad" : op.name);
  if (resumed_calls_ > 0) graph_.mark_gradient(id);
  return id;
}

std::vector<Tensor> GraphBuilder::apply(const Op& op, std::span<const Tensor> inputs,
                                        const Attrs& attrs) {
  static const Op& detach = get_op("detach");
  static const Op& to_device = get_op("to_device");
  TENON_CHECK(!calls_.empty(), TraceError, "[{}] called outside of the traced module", op.name);
  if (&op == &to_device) return {moved_source(op, inputs[0], attrs)};
  std::vector<ValueId> operands;
  for (const Tensor& input : inputs) operands.push_back(value_of(input, op.name));
  const NodeId id = add(op, std::move(operands), settled(op, attrs));
  const bool aliases = may_alias(op, graph_.node(id).attrs);
  const Handle first = aliases ? handle_of(inputs[0], op.name) : Handle();
  if (op.view) memories_[first.memory].viewed = first.value;
  const bool cut_off = !records_gradients_ && !detail::grad_mode() && !op.not_differentiable;
  std::vector<Tensor> outputs;
  for (ValueId output : std::vector<ValueId>(graph_.node(id).outputs)) {
    if (cut_off && is_floating(graph_.value(output).spec.dtype)) {
      output = graph_.node(add(detach, {output}, {})).outputs[0];
    }
    outputs.push_back(traced(aliases ? Handle{output, first.memory, first.seen, op.view != nullptr}
                                     : Handle{output, new_memory()}));
  }
  return outputs;
}

/// What code moves to another device while it is traced: a constant may be, now, and a random tensor is
/// drawn there. State would be a constant from then on, and what the Graph computes has its device.
Tensor GraphBuilder::moved_source(const Op& op, const Tensor& tensor, const Attrs& attrs) {
  const Device to = attrs.as<ToDeviceAttrs>().device;
  if (tensor.device() == to) return clone(tensor);
  if (const Tensor drawn = drawn_on(to, tensor)) return drawn;
  const std::string device = to.to_string();
  TENON_CHECK(tensor.is_eager(), TraceError,
              "[to_device] under the tracer {} cannot move from {} to {}: a Graph runs on one "
              "device; move the model and its inputs with to({}) before the trace",
              graph_.value_name(value_of(tensor, op.name)), tensor.device().to_string(), device,
              device);
  know_states();
  const auto shares = [&](const Tensor& state) {
    return state.is_eager() && state.storage() == tensor.storage();
  };
  std::string owner;
  for (const auto& [identity, state] : states_) {
    if (shares(state.tensor)) owner = state.name;
  }
  for (const auto& [identity, known] : known_states_) {
    const Value& value = graph_.value(known.state);
    const bool is_state = value.kind != ValueKind::constant || known.handle.value != known.state;
    if (is_state && shares(known.tensor)) owner = value.name;
  }
  if (owner.empty() && tensor.requires_grad()) owner = "a tensor that requires a gradient";
  TENON_CHECK(owner.empty(), TraceError,
              "[to_device] under the tracer {} cannot move from {} to {}: its copy would be a "
              "constant of the Graph, which later changes do not reach; move the model with to({}) "
              "before the trace",
              owner, tensor.device().to_string(), device, device);
  return apply_eager(op, {&tensor, 1}, attrs).at(0);
}

/// The call that drew a random tensor, recorded again for another device; undefined for other tensors.
/// The first call is dead code where nothing else reads it.
Tensor GraphBuilder::drawn_on(Device device, const Tensor& tensor) {
  if (tensor.is_eager()) return {};
  const Value& value = graph_.value(value_of(tensor, "to_device"));
  if (value.kind != ValueKind::result) return {};
  const Node& node = graph_.node(value.producer);
  if (!node.op->has(Trait::random) || !node.inputs.empty()) return {};
  const Op& op = *node.op;
  Attrs attrs = node.attrs;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    if (attrs.kind(i) == FieldKind::device) attrs = attrs.with(i, device);
  }
  return traced({graph_.node(add(op, {}, std::move(attrs))).outputs[0], new_memory()});
}

Tensor GraphBuilder::capture(const Tensor& tensor) {
  auto impl = detail::new_handle(*tensor.impl());
  Handle handle = handle_of(tensor, "capture");
  require_current(handle, "capture");
  handle.seen = kCaptured;
  impl->payload =
      std::make_shared<TracedValue>(this, handle, graph_.value(handle.value).spec.shape);
  impl->storage = nullptr;
  return Tensor(std::move(impl));
}

void GraphBuilder::assign(const Tensor& target, const Tensor& source) {
  const ValueId value = value_of(source, "copy_");
  Handle handle = handle_of(target, "copy_");
  require_current(handle, "copy_");
  if (target.is_eager()) return change_state(target, value);
  require_changeable(handle);
  Memory& memory = memories_[handle.memory];
  memory.changed = handle.value;
  handle = {value, handle.memory, ++memory.changes};
  target.impl()->payload =
      std::make_shared<TracedValue>(this, handle, graph_.value(value).spec.shape);
}

/// The state holds `value` from here on; what overlaps it is changed too, in memory, but not known.
void GraphBuilder::change_state(const Tensor& target, ValueId value) {
  if (on_storage_.empty()) {
    for (const auto& [identity, known] : known_states_) {
      on_storage_[known.tensor.storage().get()].push_back(known.tensor);
    }
  }
  KnownTensor& changed = known_states_.at(target.impl().get());
  for (const Tensor& other : on_storage_.at(target.storage().get())) {
    if (!other.is_same(target) && !overlap(other.view_of_data(), target.view_of_data())) continue;
    Memory& memory = memories_[known_states_.at(other.impl().get()).handle.memory];
    memory.changed = changed.state;
    ++memory.changes;
  }
  graph_.set_write(changed.state, value);
  changed.handle.value = value;
  changed.handle.seen = memories_[changed.handle.memory].changes;
}

void GraphBuilder::forget_temporaries() {
  constexpr long kOwnHandles = 3;  // in known_states_, on_storage_ and the Graph
  for (const StateWrite& write : std::vector<StateWrite>(graph_.writes())) {
    const Value& state = graph_.value(write.state);
    const bool is_lost = state.kind == ValueKind::constant &&
                         state.tensor.impl().use_count() == kOwnHandles &&
                         state.tensor.storage().use_count() == 1;
    if (is_lost) graph_.drop_write(write.state);
  }
}

/// A value that the traced code made may be changed, while no view shows it.
void GraphBuilder::require_changeable(const Handle& handle) const {
  const ValueId owner = memories_[handle.memory].owner;
  const bool has_views = memories_[handle.memory].viewed == handle.value;
  TENON_CHECK(owner != handle.value, TraceError,
              "[copy_] under the tracer an input cannot be changed in place; change a clone()");
  TENON_CHECK(!handle.is_view && !has_views, TraceError,
              "[copy_] under the tracer {} cannot be changed in place: {}; change a clone()",
              graph_.value_name(handle.value),
              handle.is_view ? "it is a view" : "there are views of it");
  TENON_CHECK(
      owner == kNone, TraceError,
      "[copy_] under the tracer {} cannot be changed in place: it may be {} itself; change a "
      "clone()",
      graph_.value_name(handle.value), graph_.value_name(owner));
}

void GraphBuilder::resume_call(std::int32_t call) {
  calls_.push_back({call == kNoCall ? 0 : call});
  ++resumed_calls_;
}

void GraphBuilder::leave_call() {
  calls_.pop_back();
  --resumed_calls_;
}

void GraphBuilder::carry_marks(const Node& node, std::size_t first) {
  if (added_.size() == first + 1) graph_.rename(added_.back(), node.name);
  for (std::size_t i = first; i < added_.size(); ++i) {
    if (node.region != kNone) graph_.set_region(added_[i], node.region);
    const Op* op = graph_.node(added_[i]).op;
    if (!node.kernel.empty() && (op == node.op || op->name == node.op->recorded_as)) {
      graph_.bind_kernel(added_[i], node.kernel);
    }
  }
}

std::vector<Tensor> GraphBuilder::replay(const Graph& source, std::span<const Tensor> inputs) {
  std::unordered_map<ValueId, Tensor> tensors;
  for (std::size_t i = 0; i < source.inputs().size(); ++i) {
    tensors[source.inputs()[i]] = inputs[i];
  }
  const auto tensor_of = [&](ValueId id) {
    if (id == kNone) return Tensor();
    const Value& value = source.value(id);
    return value.tensor ? value.tensor : tensors.at(id);
  };
  for (NodeId id : source.order()) {
    const Node& node = source.node(id);
    std::vector<Tensor> operands;
    for (ValueId operand : node.inputs) operands.push_back(tensor_of(operand));
    calls_.push_back({node.call});
    const std::size_t first = added_.size();
    // Its gradient is that of the plainer ops, too.
    const bool split = node.kernel == kDecomposition && node.op->decompose != nullptr;
    const std::vector<Tensor> outputs = split ? node.op->decompose(operands, node.attrs)
                                              : tenon::apply(*node.op, operands, node.attrs);
    calls_.pop_back();
    carry_marks(node, first);
    for (std::size_t i = 0; i < outputs.size(); ++i) tensors[node.outputs[i]] = outputs[i];
  }
  std::vector<Tensor> outputs;
  for (ValueId id : source.outputs()) outputs.push_back(tensor_of(id));
  const NoGradGuard no_grad;
  std::vector<std::pair<Tensor, Tensor>> writes;
  for (const StateWrite& write : source.writes()) {  // of values as they were before all writes
    writes.emplace_back(source.value(write.state).tensor, capture(tensor_of(write.value)));
  }
  for (auto& [state, value] : writes) state.copy_(value);
  return outputs;
}

void GraphBuilder::enter_module(const ModuleFrame& frame, std::span<const Tensor> inputs) {
  ModuleCall call;
  call.parent = calls_.empty() ? kNone : calls_.back().id;
  call.has_hooks = frame.has_hooks;
  if (const auto found = modules_.find(frame.module); found != modules_.end()) {
    call.path = found->second.path;
    call.type = found->second.type;
    call.repr = found->second.repr;
    call.leaf = found->second.leaf;
    if (const auto& hooks = found->second.hooks) {
      graph_.mutable_facts().add(
          RecordedHooks{fmt::format("module '{}'", call.path), hooks, found->second.hook_numbers});
    }
  } else {
    call.type = *frame.type;
    TENON_CHECK(call.parent != kNone, TraceError, "the traced module is not in its module tree");
    call.path = graph_.unique_call_path(graph_.call(call.parent).path, call.type);
  }
  for (const Tensor& input : inputs) call.inputs.push_back(handle_of(input, call.type).value);
  ModeCell training =
      frame.mode ? *frame.mode : std::make_shared<std::atomic<bool>>(frame.training);
  if (!root_) root_ = training;
  const DropoutMode mode = mode_fact(frame.module, call.type, training).mode;
  call.mode = mode;
  calls_.push_back({graph_.add_call(std::move(call)), mode, frame.module, std::move(training)});
}

void GraphBuilder::exit_module(const ModuleFrame&, std::span<const Tensor> outputs) {
  ModuleCall& call = graph_.mutable_call(calls_.back().id);
  for (const Tensor& output : outputs) call.outputs.push_back(handle_of(output, call.type).value);
  calls_.pop_back();
  // A library layer that is one node is known by the layer's name: q_proj, not linear.
  if (!call.leaf || call.parent == kNone) return;
  NodeId only = kNone;
  for (NodeId id : added_) {
    if (graph_.has_node(id) && graph_.node(id).call == call.id) {
      if (only != kNone) return;
      only = id;
    }
  }
  if (only != kNone) graph_.rename(only, call.name());
}

Shape symbolic_shape(const Shape& sizes, const Graph& graph, int& next_symbol) {
  Shape shape;
  for (const Dim& size : sizes) {
    shape.push_back(
        Dim::symbol(fmt::format("s{}", next_symbol++), detail::hint_of(size), graph.guards()));
  }
  return shape;
}

Graph trace(const ModuleTree& tree, const std::vector<ExampleInput>& inputs,
            const ForwardFunction& forward) {
  Graph graph;
  GraphBuilder builder(graph, SIZE_MAX, kNone);
  builder.add_tree(tree, "");
  std::vector<Tensor> tensors;
  int symbols = 0;
  for (const ExampleInput& input : inputs) {
    TensorSpec spec = input.spec;
    spec.shape = symbolic_shape(input.spec.shape, graph, symbols);
    std::string name = input.name;
    if (name.empty()) name = tensors.empty() ? "input" : fmt::format("input_{}", tensors.size());
    tensors.push_back(builder.tensor(graph.add_input(std::move(name), std::move(spec))));
  }
  std::vector<Tensor> outputs;
  {
    const GradModeGuard grad_mode(true);
    const InterpreterGuard guard(builder);
    outputs = forward(tensors);
  }
  std::vector<ValueId> ids;
  for (const Tensor& output : outputs) {
    TENON_CHECK(output.defined(), TraceError, "the traced module returned an undefined tensor");
    ids.push_back(builder.value_of(output, "return"));
  }
  graph.set_outputs(std::move(ids));
  outputs.clear();
  builder.forget_temporaries();
  graph.eliminate_dead_code();
  return graph;
}

}  // namespace tenon
