#include "schedule/regions/correspondence.h"

#include <algorithm>
#include <map>

#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

std::size_t mixed(std::size_t hash, std::size_t value) {
  return (hash ^ value) * 0x9e3779b97f4a7c15U + (hash >> 29);
}

std::size_t largest_id(const Graph& graph) {
  const std::vector<ValueId> values = graph.values();
  return values.empty() ? 0 : static_cast<std::size_t>(values.back()) + 1;
}

/// Node sets that share a member become one.
class Groups {
 public:
  explicit Groups(std::size_t count) : parents_(count) {
    for (std::size_t i = 0; i < count; ++i) parents_[i] = i;
  }
  std::size_t root(std::size_t i) {
    while (parents_[i] != i) i = parents_[i] = parents_[parents_[i]];
    return i;
  }
  void join(const std::set<NodeId>& nodes, std::size_t member,
            std::unordered_map<NodeId, std::size_t>& owners) {
    for (const NodeId id : nodes) {
      const auto [owner, is_new] = owners.emplace(id, member);
      if (!is_new) parents_[root(member)] = root(owner->second);
    }
  }

 private:
  std::vector<std::size_t> parents_;
};

/// Attributes as text that no two different ones share; a dropout site as its number in `sites`.
std::string exact_text(const Attrs& attrs, std::map<std::int64_t, std::size_t>& sites) {
  std::string text;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    const AttrValue value = attrs.value(i);
    text += attrs.name(i);
    if (const auto* site = std::get_if<std::int64_t>(&value); site && attrs.name(i) == "site") {
      text += fmt::format("=#{},", sites.try_emplace(*site, sites.size()).first->second);
    } else if (const auto* number = std::get_if<double>(&value)) {
      text += fmt::format("={},", *number);
    } else {
      text += fmt::format("={},", tenon::to_string(value));
    }
  }
  return text;
}

}  // namespace

Correspondence::Correspondence(const Graph& before, const Graph& after)
    : before_{before, std::vector<int>(largest_id(before), kNone)},
      after_{after, std::vector<int>(largest_id(after), kNone)} {
  for (const auto& [from, to] : after.replaced_values()) replaced_[from] = to;
  results_.insert(before.outputs().begin(), before.outputs().end());
  for (const StateWrite& write : before.writes()) results_.insert(write.value);
  number();
}

int Correspondence::new_class(bool in_before, bool in_after) {
  classes_.push_back({static_cast<int>(classes_.size()), in_before, in_after});
  return classes_.back().parent;
}

int Correspondence::root(int number) const {
  while (classes_[static_cast<std::size_t>(number)].parent != number) {
    Class& one = classes_[static_cast<std::size_t>(number)];
    number = one.parent = classes_[static_cast<std::size_t>(one.parent)].parent;
  }
  return number;
}

void Correspondence::join(int a, int b) {
  // The original's hashes are made of the lower ones.
  const int low = std::min(root(a), root(b));
  const int high = std::max(root(a), root(b));
  Class& to = classes_[static_cast<std::size_t>(low)];
  Class& from = classes_[static_cast<std::size_t>(high)];
  to.in_before |= from.in_before;
  to.in_after |= from.in_after;
  from.parent = low;
}

void Correspondence::number() {
  classes_.clear();
  calls_.clear();
  claims_.clear();
  recognized_.clear();
  number_original();
  number_rewritten();
}

std::size_t Correspondence::hash_of(const Side& side, const Node& node) const {
  std::size_t hash = std::hash<const void*>()(node.op);
  for (const ValueId id : node.inputs) {
    hash = mixed(hash, id == kNone ? 0 : static_cast<std::size_t>(class_of(side, id)) + 1);
  }
  return hash;
}

void Correspondence::number_original() {
  for (const ValueId id : before_.graph.values()) {
    if (before_.graph.value(id).kind != ValueKind::result) {
      class_of(before_, id) = new_class(true, false);
    }
  }
  for (const NodeId id : before_.graph.order()) {
    const Node& node = before_.graph.node(id);
    const std::size_t hash = hash_of(before_, node);
    const auto [first, last] = calls_.equal_range(hash);
    const auto same = std::find_if(first, last, [&](const auto& call) {
      return same_call(before_.graph.node(call.second), before_, node);
    });
    for (std::size_t i = 0; i < node.outputs.size(); ++i) {
      class_of(before_, node.outputs[i]) =
          same == last
              ? new_class(true, false)
              : class_of(std::as_const(before_), before_.graph.node(same->second).outputs[i]);
    }
    if (same == last) calls_.emplace(hash, id);
  }
}

/// Operand by operand the same, op, attributes and bound kernel too.
bool Correspondence::same_call(const Node& original, const Side& side,
                               const Node& rewritten) const {
  if (original.op != rewritten.op || original.kernel != rewritten.kernel ||
      original.inputs.size() != rewritten.inputs.size() || !(original.attrs == rewritten.attrs)) {
    return false;
  }
  for (std::size_t i = 0; i < original.inputs.size(); ++i) {
    const ValueId a = original.inputs[i];
    const ValueId b = rewritten.inputs[i];
    if ((a == kNone) != (b == kNone)) return false;
    if (a != kNone && class_of(before_, a) != class_of(side, b)) return false;
  }
  return true;
}

void Correspondence::take_results(const Node& original, const Node& rewritten) {
  for (std::size_t i = 0; i < rewritten.outputs.size(); ++i) {
    const int number = class_of(std::as_const(before_), original.outputs[i]);
    classes_[static_cast<std::size_t>(number)].in_after = true;
    class_of(after_, rewritten.outputs[i]) = number;
    recognized_.insert(rewritten.outputs[i]);
  }
}

ValueId Correspondence::stand_in(ValueId id) const {
  if (dropped_.contains(id)) return kNone;
  if (after_.graph.has_value(id)) return id;
  ValueId value = id;
  for (std::size_t steps = 0; steps <= replaced_.size(); ++steps) {
    const auto next = replaced_.find(value);
    if (next == replaced_.end()) return kNone;
    value = next->second;
    if (after_.graph.has_value(value)) return value;
  }
  return kNone;
}

void Correspondence::claim(ValueId before, ValueId after) {
  const int a = class_of(std::as_const(before_), before);
  const int b = class_of(std::as_const(after_), after);
  if (a == b) return;
  claims_.push_back({before, after});
  join(a, b);
}

void Correspondence::number_rewritten() {
  std::unordered_map<const TensorImpl*, ValueId> states;
  for (const ValueId id : before_.graph.values()) {
    const Value& value = before_.graph.value(id);
    if (value.tensor) states.emplace(value.tensor.impl().get(), id);
  }
  const auto shared = [&](ValueId original, ValueId rewritten) {
    const int number = class_of(std::as_const(before_), original);
    classes_[static_cast<std::size_t>(number)].in_after = true;
    class_of(after_, rewritten) = number;
  };
  for (std::size_t i = 0; i < after_.graph.inputs().size(); ++i) {
    shared(before_.graph.inputs().at(i), after_.graph.inputs()[i]);
  }
  for (const ValueId id : after_.graph.values()) {
    const Value& value = after_.graph.value(id);
    if (!value.tensor) continue;
    const auto same = states.find(value.tensor.impl().get());
    if (same != states.end()) {
      shared(same->second, id);
    } else {
      class_of(after_, id) = new_class(false, true);
    }
  }
  std::unordered_multimap<ValueId, ValueId> stand_for;
  for (const NodeId id : before_.graph.order()) {
    for (const ValueId output : before_.graph.node(id).outputs) {
      const ValueId other = stand_in(output);
      if (other != kNone) stand_for.emplace(other, output);
    }
  }
  const auto claim_all = [&](ValueId rewritten) {
    const auto [first, last] = stand_for.equal_range(rewritten);
    for (auto it = first; it != last; ++it) claim(it->second, rewritten);
  };
  for (const ValueId id : after_.graph.values()) {
    if (after_.graph.value(id).kind != ValueKind::result) claim_all(id);
  }
  for (const NodeId id : after_.graph.order()) {
    const Node& node = after_.graph.node(id);
    const Node* same = nullptr;
    if (before_.graph.has_node(id) && same_call(before_.graph.node(id), after_, node)) {
      same = &before_.graph.node(id);
    }
    if (same == nullptr) {
      const auto [first, last] = calls_.equal_range(hash_of(after_, node));
      for (auto it = first; it != last && same == nullptr; ++it) {
        if (same_call(before_.graph.node(it->second), after_, node))
          same = &before_.graph.node(it->second);
      }
    }
    if (same != nullptr) {
      take_results(*same, node);
    } else {
      for (const ValueId output : node.outputs) class_of(after_, output) = new_class(false, true);
    }
    for (const ValueId output : node.outputs) claim_all(output);
  }
  for (std::size_t i = 0; i < before_.graph.outputs().size(); ++i) {
    claim(before_.graph.outputs()[i], after_.graph.outputs().at(i));
  }
  for (const StateWrite& write : before_.graph.writes()) {
    for (const StateWrite& other : after_.graph.writes()) {
      const bool same = class_of(std::as_const(before_), write.state) ==
                        class_of(std::as_const(after_), other.state);
      if (same) claim(write.value, other.value);
    }
  }
}

/// The nodes behind a result, back to values that both sides have, unless these are opened.
Correspondence::Cone Correspondence::cone(const Side& side, bool is_before, ValueId result,
                                          const std::set<int>& opened,
                                          std::set<ValueId>& inputs) const {
  Cone nodes;
  std::vector<ValueId> open{result};
  // What is claimed must be computed, unless it is another value of the original itself.
  bool is_root = is_before || !recognized_.contains(result);
  while (!open.empty()) {
    const ValueId id = open.back();
    open.pop_back();
    const NodeId producer = side.graph.value(id).producer;
    const Class& number = classes_[static_cast<std::size_t>(class_of(side, id))];
    const bool shared = is_before ? number.in_after : number.in_before;
    const bool stops = !is_root && shared && !opened.contains(class_of(side, id));
    is_root = false;
    if (producer == kNone || stops) {
      inputs.insert(id);
      continue;
    }
    if (!nodes.insert(producer).second) continue;
    for (const ValueId operand : side.graph.node(producer).inputs) {
      if (operand != kNone) open.push_back(operand);
    }
  }
  return nodes;
}

void Correspondence::add_input(Region& region, std::unordered_map<int, int>& by_class, ValueId id,
                               bool is_before) const {
  const int number = class_of(is_before ? before_ : after_, id);
  const auto [known, is_new] = by_class.emplace(number, static_cast<int>(region.inputs.size()));
  if (is_new) region.inputs.emplace_back();
  RegionInput& input = region.inputs[static_cast<std::size_t>(known->second)];
  ValueId& own = is_before ? input.before : input.after;
  if (own == kNone) own = id;
  (is_before ? region.inputs_before : region.inputs_after)[id] = known->second;
}

Region Correspondence::region_of(const std::vector<ValuePair>& outputs,
                                 const std::set<int>& opened) const {
  Region region;
  region.outputs = outputs;
  Cone before;
  Cone after;
  std::set<ValueId> inputs_before;
  std::set<ValueId> inputs_after;
  for (const ValuePair& output : outputs) {
    before.merge(cone(before_, true, output.before, opened, inputs_before));
    after.merge(cone(after_, false, output.after, opened, inputs_after));
  }
  const auto in_order = [](const Graph& graph, const Cone& nodes) {
    std::vector<NodeId> ordered(nodes.begin(), nodes.end());
    std::sort(ordered.begin(), ordered.end(),
              [&](NodeId a, NodeId b) { return graph.position(a) < graph.position(b); });
    return ordered;
  };
  region.before = in_order(before_.graph, before);
  region.after = in_order(after_.graph, after);
  // In the order of their first use, so that equal structures number their inputs alike.
  std::unordered_map<int, int> by_class;
  const auto collect = [&](const Side& side, const std::vector<NodeId>& nodes,
                           const std::set<ValueId>& found, bool is_before) {
    for (const NodeId node : nodes) {
      for (const ValueId id : side.graph.node(node).inputs) {
        if (id != kNone && found.contains(id)) add_input(region, by_class, id, is_before);
      }
    }
    for (const ValuePair& output : outputs) {
      const ValueId id = is_before ? output.before : output.after;
      if (found.contains(id)) add_input(region, by_class, id, is_before);
    }
  };
  collect(before_, region.before, inputs_before, true);
  collect(after_, region.after, inputs_after, false);
  return region;
}

std::vector<Region> Correspondence::regions() const {
  std::vector<ValuePair> claims = claims_;
  const auto place = [&](const ValuePair& pair) {
    const NodeId producer = before_.graph.value(pair.before).producer;
    return producer == kNone ? std::size_t{0} : before_.graph.position(producer) + 1;
  };
  std::stable_sort(claims.begin(), claims.end(), [&](const ValuePair& a, const ValuePair& b) {
    return place(a) != place(b) ? place(a) < place(b) : a.before < b.before;
  });
  Groups groups(claims.size());
  std::unordered_map<NodeId, std::size_t> owners_before;
  std::unordered_map<NodeId, std::size_t> owners_after;
  for (std::size_t i = 0; i < claims.size(); ++i) {
    std::set<ValueId> inputs;
    groups.join(cone(before_, true, claims[i].before, {}, inputs), i, owners_before);
    groups.join(cone(after_, false, claims[i].after, {}, inputs), i, owners_after);
  }
  std::map<std::size_t, std::vector<ValuePair>> members;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < claims.size(); ++i) {
    auto& group = members[groups.root(i)];
    if (group.empty()) order.push_back(groups.root(i));
    group.push_back(claims[i]);
  }
  std::vector<Region> result;
  for (const std::size_t group : order) result.push_back(region_of(members[group], {}));
  return result;
}

bool Correspondence::widen(Region& region) const {
  // What the region computes itself is opened already: its inputs are what it stops at.
  std::set<int> opened;
  const auto open = [&](const Side& side, ValueId id) {
    if (id != kNone && side.graph.value(id).producer != kNone) opened.insert(class_of(side, id));
  };
  for (const NodeId id : region.before) {
    for (const ValueId output : before_.graph.node(id).outputs) open(before_, output);
  }
  for (const NodeId id : region.after) {
    for (const ValueId output : after_.graph.node(id).outputs) open(after_, output);
  }
  const std::size_t inside = opened.size();
  for (const RegionInput& input : region.inputs) {
    open(before_, input.before);
    open(after_, input.after);
  }
  if (opened.size() == inside) return false;
  region = region_of(region.outputs, opened);
  return true;
}

Region Correspondence::whole() const {
  std::vector<ValuePair> outputs;
  const auto add = [&](ValueId before, ValueId after) {
    const ValuePair pair{before, after};
    if (std::find(outputs.begin(), outputs.end(), pair) == outputs.end()) outputs.push_back(pair);
  };
  for (std::size_t i = 0; i < before_.graph.outputs().size(); ++i) {
    add(before_.graph.outputs()[i], after_.graph.outputs().at(i));
  }
  for (const StateWrite& write : before_.graph.writes()) {
    for (const StateWrite& other : after_.graph.writes()) {
      if (class_of(before_, write.state) == class_of(after_, other.state)) {
        add(write.value, other.value);
      }
    }
  }
  std::set<int> all;
  for (std::size_t i = 0; i < classes_.size(); ++i) all.insert(static_cast<int>(i));
  return region_of(outputs, all);
}

bool Correspondence::drop_claims(const Region& region) {
  bool dropped = false;
  for (const ValuePair& output : region.outputs) {
    if (!results_.contains(output.before)) dropped |= dropped_.insert(output.before).second;
  }
  if (dropped) number();
  return dropped;
}

std::string structure_text(const Region& region, const Graph& before, const Graph& after,
                           const std::vector<std::string>& inputs) {
  std::string text;
  std::map<std::int64_t, std::size_t> sites;
  const auto side = [&](const Graph& graph, const std::vector<NodeId>& nodes, bool is_before) {
    const auto& own_inputs = is_before ? region.inputs_before : region.inputs_after;
    std::unordered_map<ValueId, std::string> names;
    for (const auto& [id, index] : own_inputs) names[id] = fmt::format("i{}", index);
    std::unordered_map<ValueId, std::string> results;
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      const Node& node = graph.node(nodes[n]);
      text += fmt::format("{}({})@{}", node.op->name, exact_text(node.attrs, sites), node.kernel);
      for (const ValueId id : node.inputs) text += " " + (id == kNone ? "-" : names.at(id));
      text += "\n";
      for (std::size_t k = 0; k < node.outputs.size(); ++k) {
        results[node.outputs[k]] = fmt::format("n{}:{}", n, k);
        names.try_emplace(node.outputs[k], results[node.outputs[k]]);
      }
    }
    text += "->";
    for (const ValuePair& output : region.outputs) {
      const ValueId id = is_before ? output.before : output.after;
      const auto result = results.find(id);
      text += " " + (result != results.end() ? result->second : names.at(id));
    }
    text += "\n";
  };
  side(before, region.before, true);
  side(after, region.after, false);
  for (const std::string& input : inputs) text += input + "\n";
  return text;
}

}  // namespace tenon::detail
