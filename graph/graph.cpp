#include "graph/graph.h"

#include <algorithm>
#include <unordered_set>

#include "tensor/detail/check.h"

namespace tenon {

bool draws_mask(const Node& node) {
  if (!node.op->has(Trait::random) || node.attrs.find("site") == node.attrs.size()) return false;
  if (node.op->identity && node.op->identity(node.attrs, true)) return false;
  // A fused op whose probability is 0 draws nothing either, though it is no identity.
  const std::size_t p = std::min(node.attrs.find("p"), node.attrs.find("dropout_p"));
  return p == node.attrs.size() || !equal(node.attrs.value(p), 0.0);
}

Graph::Graph() : guards_(std::make_shared<GuardList>()) {}

bool Graph::has_node(NodeId id) const {
  return id >= 0 && static_cast<std::size_t>(id) < nodes_.size() &&
         nodes_[static_cast<std::size_t>(id)] != nullptr;
}

const Node& Graph::node(NodeId id) const {
  TENON_INTERNAL(has_node(id), "node {} does not exist", id);
  return *nodes_[static_cast<std::size_t>(id)];
}

const Value& Graph::value(ValueId id) const {
  TENON_INTERNAL(id >= 0 && static_cast<std::size_t>(id) < values_.size() &&
                     values_[static_cast<std::size_t>(id)],
                 "value {} does not exist", id);
  return *values_[static_cast<std::size_t>(id)];
}

std::vector<ValueId> Graph::values() const {
  std::vector<ValueId> ids;
  for (const auto& value : values_) {
    if (value) ids.push_back(value->id);
  }
  return ids;
}

// Entries are shared between copies of a Graph; one that is about to change is copied first.
Node& Graph::mutable_node(NodeId id) {
  auto copy = std::make_shared<Node>(node(id));
  Node& result = *copy;
  nodes_[static_cast<std::size_t>(id)] = std::move(copy);
  return result;
}

Value& Graph::mutable_value(ValueId id) {
  auto copy = std::make_shared<Value>(value(id));
  Value& result = *copy;
  values_[static_cast<std::size_t>(id)] = std::move(copy);
  return result;
}

std::size_t Graph::position(NodeId id) const {
  const auto found = std::find(order_.begin(), order_.end(), id);
  TENON_INTERNAL(found != order_.end(), "node {} is not in the order", id);
  return static_cast<std::size_t>(found - order_.begin());
}

bool Graph::is_within(CallId id, CallId ancestor) const {
  for (; id != kNone; id = call(id).parent) {
    if (id == ancestor) return true;
  }
  return false;
}

std::vector<NodeId> Graph::nodes_within(CallId id) const {
  std::vector<NodeId> found;
  for (NodeId node_id : order_) {
    if (is_within(node(node_id).call, id)) found.push_back(node_id);
  }
  return found;
}

CallId Graph::visible_call(NodeId id) const {
  CallId visible = node(id).call;
  const ModuleCall& innermost = call(visible);
  if (innermost.leaf && innermost.parent != kNone &&
      nodes_per_call_[static_cast<std::size_t>(visible)] == 1) {
    visible = innermost.parent;
  }
  for (CallId c = visible; c != kNone && !call(c).closed; c = call(c).parent) {
    if (call(c).flattened) visible = c;
  }
  return visible;
}

std::string Graph::full_name(NodeId id) const {
  const std::string& path = call(visible_call(id)).path;
  return path.empty() ? node(id).name : path + "." + node(id).name;
}

std::string Graph::value_name(ValueId id) const {
  const Value& v = value(id);
  if (v.kind != ValueKind::result) return "%" + v.name;
  const Node& producer = node(v.producer);
  const std::string name = "%" + full_name(v.producer);
  return producer.outputs.size() == 1 ? name : fmt::format("{}:{}", name, v.output_index);
}

ValueId Graph::add_value(Value value) {
  value.id = static_cast<ValueId>(values_.size());
  values_.push_back(std::make_shared<const Value>(std::move(value)));
  return values_.back()->id;
}

ValueId Graph::add_input(std::string name, TensorSpec spec) {
  Value value;
  value.kind = ValueKind::input;
  value.name = std::move(name);
  value.spec = std::move(spec);
  inputs_.push_back(add_value(std::move(value)));
  return inputs_.back();
}

ValueId Graph::add_state(ValueKind kind, std::string name, Tensor tensor) {
  Value value;
  value.kind = kind;
  value.name = std::move(name);
  value.spec = tensor.spec();
  value.tensor = std::move(tensor);
  return add_value(std::move(value));
}

CallId Graph::add_call(ModuleCall call) {
  call.id = static_cast<CallId>(calls_.size());
  calls_.push_back(std::move(call));
  nodes_per_call_.push_back(0);
  return calls_.back().id;
}

std::string Graph::unique_name(const std::string& base, CallId visible, NodeId except) const {
  std::unordered_set<std::string> taken;
  for (NodeId id : order_) {
    const std::string& name = node(id).name;  // only these can collide; asking who sees one is slow
    if (id != except && name.starts_with(base) && visible_call(id) == visible) taken.insert(name);
  }
  if (!taken.contains(base)) return base;
  for (int i = 1;; ++i) {
    std::string name = fmt::format("{}_{}", base, i);
    if (!taken.contains(name)) return name;
  }
}

NodeId Graph::add_node(const Op& op, std::vector<ValueId> inputs, Attrs attrs, CallId call,
                       std::size_t position) {
  std::vector<const TensorSpec*> specs;
  for (ValueId input : inputs) specs.push_back(input == kNone ? nullptr : &value(input).spec);
  std::vector<TensorSpec> outputs = infer(op, specs, attrs);

  Node node;
  node.id = static_cast<NodeId>(nodes_.size());
  node.op = &op;
  node.attrs = std::move(attrs);
  node.inputs = std::move(inputs);
  node.call = call;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    Value output;
    output.spec = std::move(outputs[i]);
    output.producer = node.id;
    output.output_index = static_cast<int>(i);
    node.outputs.push_back(add_value(std::move(output)));
  }
  for (std::size_t i = 0; i < node.inputs.size(); ++i) {
    if (node.inputs[i] != kNone) {
      mutable_value(node.inputs[i]).uses.push_back({node.id, static_cast<int>(i)});
    }
  }
  const NodeId id = node.id;
  ++nodes_per_call_.at(static_cast<std::size_t>(call));
  nodes_.push_back(std::make_shared<const Node>(std::move(node)));
  order_.insert(order_.begin() + static_cast<std::ptrdiff_t>(std::min(position, order_.size())),
                id);
  return id;
}

void Graph::rename(NodeId id, const std::string& base) {
  mutable_node(id).name = unique_name(base, visible_call(id), id);
}

void Graph::rename_apart(const std::vector<NodeId>& ids) {
  std::vector<std::string> bases;
  for (NodeId id : ids) {
    bases.push_back(node(id).name);
    mutable_node(id).name.clear();
  }
  for (std::size_t i = 0; i < ids.size(); ++i) rename(ids[i], bases[i]);
}

std::int32_t Graph::unused_region() const {
  std::int32_t next = 0;
  for (NodeId id : order_) next = std::max(next, node(id).region + 1);
  return next;
}

void Graph::set_attribute(NodeId id, std::size_t field, const AttrValue& value) {
  Node& changed = mutable_node(id);
  changed.attrs = changed.attrs.with(field, value);
}

std::string Graph::unique_call_path(const std::string& parent_path, const std::string& type) const {
  for (int i = 0;; ++i) {
    std::string path = parent_path.empty() ? fmt::format("{}_{}", type, i)
                                           : fmt::format("{}.{}_{}", parent_path, type, i);
    const bool taken = std::any_of(calls_.begin(), calls_.end(),
                                   [&](const ModuleCall& c) { return c.path == path; });
    if (!taken) return path;
  }
}

bool Graph::is_output(ValueId id) const {
  return std::find(outputs_.begin(), outputs_.end(), id) != outputs_.end() ||
         std::any_of(writes_.begin(), writes_.end(),
                     [&](const StateWrite& w) { return w.value == id || w.state == id; });
}

void Graph::set_write(ValueId state, ValueId value) {
  for (StateWrite& write : writes_) {
    if (write.state == state) {
      write.value = value;
      return;
    }
  }
  writes_.push_back({state, value});
}

void Graph::drop_write(ValueId state) {
  std::erase_if(writes_, [&](const StateWrite& write) { return write.state == state; });
}

Graph Graph::without_nodes() const {
  Graph result;
  result.guards_ = guards_;
  for (ValueId id : inputs_) result.add_input(value(id).name, value(id).spec);
  for (ModuleCall call : calls_) {
    call.inputs.clear();
    call.outputs.clear();
    result.add_call(std::move(call));
  }
  return result;
}

void Graph::set_operand(NodeId id, int operand, ValueId value) {
  ValueId& current = mutable_node(id).inputs.at(static_cast<std::size_t>(operand));
  if (current == value) return;
  if (current != kNone) std::erase(mutable_value(current).uses, Use{id, operand});
  if (value != kNone) mutable_value(value).uses.push_back({id, operand});
  current = value;
}

void Graph::replace_all_uses(ValueId from, ValueId to) {
  if (from == to) return;
  const std::vector<Use> uses = value(from).uses;
  for (const Use& use : uses) {
    mutable_node(use.node).inputs[static_cast<std::size_t>(use.operand)] = to;
    mutable_value(to).uses.push_back(use);
  }
  mutable_value(from).uses.clear();
  std::replace(outputs_.begin(), outputs_.end(), from, to);
  for (StateWrite& write : writes_) {
    if (write.value == from) write.value = to;
  }
  for (ModuleCall& call : calls_) {
    std::replace(call.inputs.begin(), call.inputs.end(), from, to);
    std::replace(call.outputs.begin(), call.outputs.end(), from, to);
  }
}

void Graph::erase_node(NodeId id) {
  const Node erased = node(id);
  for (ValueId output : erased.outputs) {
    TENON_CHECK(value(output).uses.empty() && !is_output(output), GraphError,
                "node {} cannot be erased: its result is used", full_name(id));
  }
  for (std::size_t i = 0; i < erased.inputs.size(); ++i) {
    if (erased.inputs[i] == kNone) continue;
    std::erase(mutable_value(erased.inputs[i]).uses, Use{id, static_cast<int>(i)});
  }
  for (ModuleCall& call : calls_) {
    for (ValueId output : erased.outputs) {
      std::erase(call.inputs, output);
      std::erase(call.outputs, output);
    }
  }
  for (ValueId output : erased.outputs) values_[static_cast<std::size_t>(output)] = nullptr;
  nodes_[static_cast<std::size_t>(id)] = nullptr;
  --nodes_per_call_[static_cast<std::size_t>(erased.call)];
  std::erase(order_, id);
}

void Graph::eliminate_dead_code() {
  const std::vector<NodeId> order = order_;
  for (auto id = order.rbegin(); id != order.rend(); ++id) {
    const Node& candidate = node(*id);
    const bool dead =
        !candidate.op->has(Trait::effect) &&
        std::all_of(candidate.outputs.begin(), candidate.outputs.end(), [&](ValueId output) {
          return value(output).uses.empty() && !is_output(output);
        });
    if (dead) erase_node(*id);
  }
  for (ValueId id : values()) {
    const Value& v = value(id);
    const bool state = v.kind != ValueKind::input && v.kind != ValueKind::result;
    if (!state || !v.uses.empty() || is_output(id)) continue;
    for (ModuleCall& call : calls_) {
      std::erase(call.inputs, id);
      std::erase(call.outputs, id);
    }
    values_[static_cast<std::size_t>(id)] = nullptr;
  }
}

}  // namespace tenon
