#include "graph/tracer.h"

#include <utility>

#include "tensor/detail/check.h"
#include "tensor/functional.h"

namespace tenon {
namespace {

/// The value of a Graph under construction that a tensor stands for.
class TracedValue final : public TracedPayload {
 public:
  TracedValue(const GraphBuilder* maker, ValueId value, Shape shape)
      : builder(maker), id(value), shape_(std::move(shape)) {}
  Dim size(int axis) const override { return shape_[axis]; }
  bool is_pattern() const override { return false; }
  const GraphBuilder* builder;
  ValueId id;

 private:
  Shape shape_;
};

}  // namespace

GraphBuilder::GraphBuilder(Graph& graph, std::size_t position, CallId call)
    : graph_(graph), position_(position) {
  if (call != kNone) calls_.push_back(call);
}

void GraphBuilder::know_states() {
  if (std::exchange(states_known_, true)) return;
  for (ValueId id : graph_.values()) {
    const Value& value = graph_.value(id);
    if (value.tensor) known_states_.emplace(value.tensor.impl().get(), id);
  }
}

Tensor GraphBuilder::tensor(ValueId id) const {
  const TensorSpec& spec = graph_.value(id).spec;
  return Tensor::symbolic(spec, std::make_shared<TracedValue>(this, id, spec.shape));
}

void GraphBuilder::add_tree(const ModuleTree& tree, const std::string& path_prefix) {
  const auto prefixed = [&](const std::string& path) {
    if (path_prefix.empty()) return path;
    return path.empty() ? path_prefix : path_prefix + "." + path;
  };
  for (const auto& [identity, module] : tree.modules) {
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

ValueId GraphBuilder::value_of(const Tensor& tensor, std::string_view op_name) {
  if (!tensor) return kNone;
  if (const auto* traced = dynamic_cast<const TracedValue*>(tensor.impl()->payload.get())) {
    TENON_CHECK(traced->builder == this, TraceError,
                "[{}] an operand comes from another trace; a traced tensor lives as long as its "
                "trace",
                op_name);
    return traced->id;
  }
  TENON_CHECK(tensor.is_eager(), TraceError,
              "[{}] an operand holds neither data nor a traced value", op_name);
  know_states();
  const TensorImpl* identity = tensor.impl().get();
  if (const auto known = known_states_.find(identity); known != known_states_.end()) {
    return known->second;
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
  const ValueId id = graph_.add_state(kind, std::move(name), std::move(held));
  known_states_.emplace(identity, id);
  kept_alive_.push_back(tensor);
  return id;
}

Attrs GraphBuilder::pin_mode(const Op& op, const Attrs& attrs) const {
  // A module whose mode differs from the root's keeps it, whatever mode the Graph is lowered in.
  const ModuleFrame* frame = current_module();
  if (!op.has(Trait::random) || frame == nullptr || frame->training == root_training_) return attrs;
  const std::size_t field = attrs.find("mode");
  if (field == attrs.size() ||
      !equal(attrs.value(field), std::string(enum_name(DropoutMode::follow)))) {
    return attrs;
  }
  const DropoutMode pinned = frame->training ? DropoutMode::train : DropoutMode::eval;
  return attrs.with(field, std::string(enum_name(pinned)));
}

NodeId GraphBuilder::add(const Op& op, std::vector<ValueId> operands, Attrs attrs) {
  operands.resize(std::max(operands.size(), op.operands.size()), kNone);
  const NodeId id =
      graph_.add_node(op, std::move(operands), std::move(attrs), calls_.back(), position_);
  position_ = std::min(position_, graph_.order().size() - 1) + 1;
  added_.push_back(id);
  graph_.rename(id, resumed_calls_ > 0 ? op.name + "_grad" : op.name);
  if (resumed_calls_ > 0) graph_.mark_gradient(id);
  return id;
}

std::vector<Tensor> GraphBuilder::apply(const Op& op, std::span<const Tensor> inputs,
                                        const Attrs& attrs) {
  TENON_CHECK(!calls_.empty(), TraceError, "[{}] called outside of the traced module", op.name);
  std::vector<ValueId> operands;
  for (const Tensor& input : inputs) operands.push_back(value_of(input, op.name));
  const NodeId id = add(op, std::move(operands), pin_mode(op, attrs));
  static const Op& detach = get_op("detach");
  const bool cut_off = !records_gradients_ && !grad_enabled() && !op.not_differentiable;
  std::vector<Tensor> outputs;
  for (ValueId output : std::vector<ValueId>(graph_.node(id).outputs)) {
    if (cut_off && is_floating(graph_.value(output).spec.dtype)) {
      output = graph_.node(add(detach, {output}, {})).outputs[0];
    }
    outputs.push_back(tensor(output));
  }
  return outputs;
}

Tensor GraphBuilder::capture(const Tensor& tensor) {
  auto impl = std::make_shared<TensorImpl>(*tensor.impl());
  const ValueId id = value_of(tensor, "capture");
  impl->payload = std::make_shared<TracedValue>(this, id, graph_.value(id).spec.shape);
  impl->storage = nullptr;
  return Tensor(std::move(impl));
}

void GraphBuilder::assign(const Tensor& target, const Tensor& source) {
  const ValueId value = value_of(source, "copy_");
  const ValueId current = value_of(target, "copy_");
  if (!target.is_eager()) {
    TENON_CHECK(graph_.value(current).kind != ValueKind::input, TraceError,
                "[copy_] under the tracer an input cannot be changed in place; change a clone()");
    require_no_views(current);
    target.impl()->payload =
        std::make_shared<TracedValue>(this, value, graph_.value(value).spec.shape);
    return;
  }
  const auto [state, first] = states_written_.try_emplace(target.impl().get(), current);
  graph_.set_write(state->second, value);
  written_at_[state->second] = added_.size();
  known_states_[target.impl().get()] = value;
}

void GraphBuilder::require_no_views(ValueId id) const {
  const Value& value = graph_.value(id);
  const bool is_view = value.producer != kNone && graph_.node(value.producer).op->view;
  const bool has_views = std::any_of(value.uses.begin(), value.uses.end(), [&](const Use& use) {
    return graph_.node(use.node).op->view != nullptr;
  });
  TENON_CHECK(!is_view && !has_views, TraceError,
              "[copy_] under the tracer {} cannot be changed in place: {}; change a clone()",
              graph_.value_name(id), is_view ? "it is a view" : "there are views of it");
}

void GraphBuilder::check_views_of_written_state() const {
  std::unordered_map<NodeId, std::size_t> place;
  for (std::size_t i = 0; i < added_.size(); ++i) place[added_[i]] = i;
  for (const auto& [state, written] : written_at_) {
    std::vector<ValueId> aliases{state};
    while (!aliases.empty()) {
      const ValueId alias = aliases.back();
      aliases.pop_back();
      for (const Use& use : graph_.value(alias).uses) {
        const Node& user = graph_.node(use.node);
        TENON_CHECK(alias == state || place.at(use.node) < written, TraceError,
                    "{} reads a view of {}, which was changed in place since; take the view again",
                    graph_.full_name(use.node), graph_.value_name(state));
        if (user.op->view) aliases.insert(aliases.end(), user.outputs.begin(), user.outputs.end());
      }
    }
  }
}

void GraphBuilder::resume_call(std::int32_t call) {
  calls_.push_back(call == kNoCall ? 0 : call);
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
    calls_.push_back(node.call);
    const std::size_t first = added_.size();
    const std::vector<Tensor> outputs = tenon::apply(*node.op, operands, node.attrs);
    calls_.pop_back();
    carry_marks(node, first);
    for (std::size_t i = 0; i < outputs.size(); ++i) tensors[node.outputs[i]] = outputs[i];
  }
  std::vector<Tensor> outputs;
  for (ValueId id : source.outputs()) outputs.push_back(tensor_of(id));
  const NoGradGuard no_grad;
  std::vector<std::pair<Tensor, Tensor>> writes;
  for (const StateWrite& write : source.writes()) {
    writes.emplace_back(source.value(write.state).tensor, tensor_of(write.value));
  }
  for (auto& [state, value] : writes) state.copy_(value);
  return outputs;
}

void GraphBuilder::enter_module(const ModuleFrame& frame, std::span<const Tensor> inputs) {
  ModuleCall call;
  call.parent = calls_.empty() ? kNone : calls_.back();
  call.has_hooks = frame.has_hooks;
  if (const auto found = modules_.find(frame.module); found != modules_.end()) {
    call.path = found->second.path;
    call.type = found->second.type;
    call.repr = found->second.repr;
    call.leaf = found->second.leaf;
  } else {
    call.type = *frame.type;
    TENON_CHECK(call.parent != kNone, TraceError, "the traced module is not in its module tree");
    call.path = graph_.unique_call_path(graph_.call(call.parent).path, call.type);
  }
  for (const Tensor& input : inputs) call.inputs.push_back(value_of(input, call.type));
  if (!root_seen_) {
    root_training_ = frame.training;
    root_seen_ = true;
  }
  calls_.push_back(graph_.add_call(std::move(call)));
}

void GraphBuilder::exit_module(const ModuleFrame&, std::span<const Tensor> outputs) {
  ModuleCall& call = graph_.mutable_call(calls_.back());
  for (const Tensor& output : outputs) call.outputs.push_back(value_of(output, call.type));
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
    shape.push_back(Dim::symbol(fmt::format("s{}", next_symbol++), size.hint(), graph.guards()));
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
    const InterpreterGuard guard(builder);
    const GradModeGuard grad_mode(true);
    outputs = forward(tensors);
  }
  std::vector<ValueId> ids;
  for (const Tensor& output : outputs) {
    TENON_CHECK(output.defined(), TraceError, "the traced module returned an undefined tensor");
    ids.push_back(builder.value_of(output, "return"));
  }
  graph.set_outputs(std::move(ids));
  builder.check_views_of_written_state();
  graph.eliminate_dead_code();
  return graph;
}

}  // namespace tenon
