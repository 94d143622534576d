#include "graph/graph.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "tensor/support/check.h"

namespace tenon {
namespace {

std::size_t index(std::int32_t id) { return static_cast<std::size_t>(id); }

/// Entries are shared between copies of a Graph; one that is about to change is copied first.
template <class T>
T& own(std::shared_ptr<T>& entry) {
  // Counting one more comes after what another thread read through its copy, now gone.
  if (const auto counted = entry; counted.use_count() > 2) entry = std::make_shared<T>(*counted);
  return *entry;
}

template <class T>
bool same_entry(const std::vector<std::shared_ptr<T>>& a, const std::vector<std::shared_ptr<T>>& b,
                std::int32_t id) {
  return index(id) < a.size() && index(id) < b.size() && a[index(id)] == b[index(id)];
}

}  // namespace

std::optional<Mask> mask_of(const Node& node) {
  const std::size_t site = node.attrs.find("site");
  if (site == node.attrs.size() || !draws(*node.op, node.attrs, true)) return std::nullopt;
  const std::size_t p = std::min(node.attrs.find("p"), node.attrs.find("dropout_p"));
  const double probability = p < node.attrs.size() ? std::get<double>(node.attrs.value(p)) : 1;
  return Mask{std::get<std::int64_t>(node.attrs.value(site)), probability};
}

Graph::Graph() : guards_(std::make_shared<GuardList>()) {}

bool Graph::has_node(NodeId id) const {
  return id >= 0 && index(id) < nodes_.size() && nodes_[index(id)] != nullptr;
}

bool Graph::has_value(ValueId id) const {
  return id >= 0 && index(id) < values_.size() && values_[index(id)] != nullptr;
}

const Node& Graph::node(NodeId id) const {
  TENON_INTERNAL(has_node(id), "node {} does not exist", id);
  return *nodes_[index(id)];
}

const Value& Graph::value(ValueId id) const {
  TENON_INTERNAL(has_value(id), "value {} does not exist", id);
  return *values_[index(id)];
}

std::vector<ValueId> Graph::values() const {
  std::vector<ValueId> ids;
  for (const auto& value : values_) {
    if (value) ids.push_back(value->id);
  }
  return ids;
}

Node& Graph::mutable_node(NodeId id) {
  TENON_INTERNAL(has_node(id), "node {} does not exist", id);
  return own(nodes_[index(id)]);
}

Value& Graph::mutable_value(ValueId id) {
  TENON_INTERNAL(has_value(id), "value {} does not exist", id);
  return own(values_[index(id)]);
}

bool Graph::shares_node(const Graph& other, NodeId id) const {
  return same_entry(nodes_, other.nodes_, id);
}

bool Graph::shares_value(const Graph& other, ValueId id) const {
  return same_entry(values_, other.values_, id);
}

std::size_t Graph::position(NodeId id) const {
  TENON_INTERNAL(has_node(id), "node {} does not exist", id);
  return position_[index(id)];
}

void Graph::renumber(std::size_t first) {
  position_.resize(nodes_.size());
  for (std::size_t i = first; i < order_.size(); ++i) position_[index(order_[i])] = i;
}

bool Graph::is_within(CallId id, CallId ancestor) const {
  for (; id != kNone; id = call(id).parent) {
    if (id == ancestor) return true;
  }
  return false;
}

void Graph::collect_nodes(CallId id, int depth, std::vector<NodeId>& found) const {
  for (NodeId n = first_node_[index(id)]; n != kNone; n = next_node_[index(n)]) found.push_back(n);
  if (depth == 0) return;
  for (CallId c = first_child_[index(id)]; c != kNone; c = next_sibling_[index(c)]) {
    collect_nodes(c, depth - 1, found);
  }
}

std::vector<NodeId> Graph::nodes_within(CallId id) const {
  std::vector<NodeId> found;
  collect_nodes(id, std::numeric_limits<int>::max(), found);
  std::sort(found.begin(), found.end(),
            [&](NodeId a, NodeId b) { return position_[index(a)] < position_[index(b)]; });
  return found;
}

CallId Graph::visible_call(NodeId id) const {
  CallId visible = node(id).call;
  const ModuleCall& innermost = call(visible);
  const bool only = first_node_[index(visible)] == id && next_node_[index(id)] == kNone;
  if (innermost.leaf && innermost.parent != kNone && only) visible = innermost.parent;
  for (CallId c = visible; c != kNone; c = call(c).parent) {
    if (call(c).flattened) visible = c;
    if (call(c).closed) break;  // to what encloses it, not to its own flattening
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
  const std::string name = fmt::format("%{}", full_name(v.producer));
  return producer.outputs.size() == 1 ? name : fmt::format("{}:{}", name, v.output_index);
}

ValueId Graph::add_value(Value value) {
  value.id = static_cast<ValueId>(values_.size());
  values_.push_back(std::make_shared<Value>(std::move(value)));
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
  first_node_.push_back(kNone);
  first_child_.push_back(kNone);
  next_sibling_.push_back(kNone);
  if (call.parent != kNone) {
    next_sibling_.back() = std::exchange(first_child_.at(index(call.parent)), call.id);
  }
  calls_.push_back(std::move(call));
  return calls_.back().id;
}

std::string Graph::unique_name(const std::string& base, CallId visible, NodeId except) const {
  // Unless it is flattened, a call sees its own nodes and those of leaves just below.
  std::vector<NodeId> candidates;
  collect_nodes(visible, call(visible).flattened ? std::numeric_limits<int>::max() : 1, candidates);
  bool taken = false;
  std::vector<int> numbers;  // n of every base_<n>
  for (NodeId id : candidates) {
    const std::string_view name = node(id).name;
    if (id == except || !name.starts_with(base) || visible_call(id) != visible) continue;
    taken |= name.size() == base.size();
    if (name.size() < base.size() + 2 || name[base.size()] != '_') continue;
    int number = 0;
    const char* const first = name.data() + base.size() + 1;
    const char* const last = name.data() + name.size();
    const auto [end, error] = std::from_chars(first, last, number);
    if (error == std::errc() && end == last && *first != '0') numbers.push_back(number);
  }
  if (!taken) return base;
  std::sort(numbers.begin(), numbers.end());
  int next = 1;
  for (int number : numbers) next += number == next ? 1 : 0;
  return fmt::format("{}_{}", base, next);
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
  next_node_.push_back(std::exchange(first_node_.at(index(call)), id));
  nodes_.push_back(std::make_shared<Node>(std::move(node)));
  position = std::min(position, order_.size());
  order_.insert(order_.begin() + static_cast<std::ptrdiff_t>(position), id);
  renumber(position);
  return id;
}

void Graph::rename(NodeId id, const std::string& base) {
  mutable_node(id).name = unique_name(base, visible_call(id), id);
}

void Graph::rename_apart(const std::vector<NodeId>& ids) {
  struct Names {
    std::unordered_set<std::string> taken;
    std::unordered_map<std::string, int> last;  // number given to a base
  };
  std::unordered_map<CallId, Names> names;  // by the call that sees them
  std::vector<bool> renamed(nodes_.size());
  for (NodeId id : ids) {
    names.try_emplace(visible_call(id));
    renamed[index(id)] = true;
  }
  for (NodeId id : order_) {
    if (renamed[index(id)]) continue;
    const auto seen = names.find(visible_call(id));
    if (seen != names.end()) seen->second.taken.insert(node(id).name);
  }
  for (NodeId id : ids) {
    Names& seen = names.at(visible_call(id));
    const std::string base = node(id).name;
    std::string name = base;
    for (int& last = seen.last[base]; !seen.taken.insert(name).second;) {
      name = fmt::format("{}_{}", base, ++last);
    }
    if (name != base) mutable_node(id).name = std::move(name);
  }
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
  const std::string stem = (parent_path.empty() ? type : parent_path + "." + type) + "_";
  // Numbers that calls at this place, or states below one, have in their names.
  std::unordered_set<std::string> taken;
  const auto note = [&](const std::string& name, bool below) {
    if (!name.starts_with(stem)) return;
    const std::size_t dot = name.find('.', stem.size());
    if (below == (dot != std::string::npos)) taken.insert(name.substr(0, dot));
  };
  for (const ModuleCall& call : calls_) note(call.path, false);
  for (const auto& value : values_) {
    if (value != nullptr && value->tensor) note(value->name, true);
  }
  for (int i = 0;; ++i) {
    std::string path = stem + std::to_string(i);
    if (!taken.contains(path)) return path;
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

void require_current(const Graph& graph) {
  graph.facts().require_current();
  for (const ValueId id : graph.values()) {
    const Value& value = graph.value(id);
    TENON_CHECK(!value.tensor || value.tensor.spec() == value.spec, StaleProgram,
                "{} is {}; it was {} when the model was traced (by to() or set_data_()); trace and "
                "build again",
                graph.value_name(id), value.tensor.spec().to_string(), value.spec.to_string());
  }
}

Graph Graph::without_nodes() const {
  Graph result;
  result.guards_ = guards_;
  result.discarding_regions_ = discarding_regions_;
  result.facts_ = facts_;
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
  replaced_values_.emplace_back(from, to);
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

NodeId Graph::replace_node(NodeId id, const Op& op, std::vector<ValueId> inputs, Attrs attrs,
                           std::size_t position) {
  const Node old = node(id);
  const std::size_t place = position == SIZE_MAX ? this->position(id) : position;
  const NodeId made = add_node(op, std::move(inputs), std::move(attrs), old.call, place);
  Node& added = mutable_node(made);
  const std::size_t count = std::min(old.outputs.size(), added.outputs.size());
  for (std::size_t i = count; i < old.outputs.size(); ++i) {
    if (value(old.outputs[i]).uses.empty() && !is_output(old.outputs[i])) continue;
    erase_node(made);
    TENON_CHECK(false, GraphError, "{} cannot be replaced by {}: its result {} is used",
                full_name(id), op.name, i);
  }
  added.region = old.region;
  added.gradient = old.gradient;
  added.recomputed = old.recomputed;
  for (std::size_t i = 0; i < count; ++i) replace_all_uses(old.outputs[i], added.outputs[i]);
  erase_node(id);
  rename(made, old.name);
  return made;
}

void Graph::erase_node(NodeId id) {
  for (ValueId output : node(id).outputs) {
    TENON_CHECK(value(output).uses.empty() && !is_output(output), GraphError,
                "node {} cannot be erased: its result is used", full_name(id));
  }
  drop_node(id);
  remove_dropped();
}

void Graph::drop_node(NodeId id) {
  const std::shared_ptr<const Node> dropped = std::exchange(nodes_[index(id)], nullptr);
  for (std::size_t i = 0; i < dropped->inputs.size(); ++i) {
    if (dropped->inputs[i] == kNone) continue;
    std::erase(mutable_value(dropped->inputs[i]).uses, Use{id, static_cast<int>(i)});
  }
  for (ValueId output : dropped->outputs) values_[index(output)] = nullptr;
  NodeId* link = &first_node_[index(dropped->call)];
  while (*link != id) link = &next_node_[index(*link)];
  *link = next_node_[index(id)];
}

void Graph::remove_dropped() {
  std::erase_if(order_, [&](NodeId id) { return !nodes_[index(id)]; });
  renumber(0);
  for (ModuleCall& call : calls_) {
    std::erase_if(call.inputs, [&](ValueId id) { return id != kNone && !has_value(id); });
    std::erase_if(call.outputs, [&](ValueId id) { return id != kNone && !has_value(id); });
  }
}

void Graph::eliminate_dead_code() {
  std::vector<bool> needed(values_.size());
  for (ValueId id : outputs_) needed[index(id)] = true;
  for (const StateWrite& write : writes_) {
    needed[index(write.state)] = true;
    needed[index(write.value)] = true;
  }
  const auto unneeded = [&](ValueId id) { return !needed[index(id)] && value(id).uses.empty(); };
  bool dropped = false;
  for (std::size_t i = order_.size(); i-- > 0;) {
    const Node& candidate = node(order_[i]);
    if (candidate.op->has(Trait::effect)) continue;
    if (!std::all_of(candidate.outputs.begin(), candidate.outputs.end(), unneeded)) continue;
    drop_node(candidate.id);
    dropped = true;
  }
  for (auto& entry : values_) {
    if (!entry || entry->kind == ValueKind::input || entry->kind == ValueKind::result) continue;
    if (!unneeded(entry->id)) continue;
    entry = nullptr;
    dropped = true;
  }
  if (dropped) remove_dropped();
}

}  // namespace tenon
