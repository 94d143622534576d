#include "schedule/matcher.h"

#include <algorithm>
#include <optional>
#include <ostream>
#include <unordered_map>
#include <utility>

#include "schedule/facts/between.h"
#include "schedule/matching/graph_facts.h"
#include "schedule/matching/module_selector.h"
#include "schedule/matching/near_miss.h"
#include "schedule/matching/search_plan.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

using detail::Mismatch;
using Kind = Mismatch::Kind;
using Step = detail::SearchStep;

std::size_t num_node_ids(const Graph& graph) {
  NodeId last = kNone;
  for (NodeId id : graph.order()) last = std::max(last, id);
  return static_cast<std::size_t>(last + 1);
}

/// A backtracking search along the plan of a pattern: what is bound lies in flat tables, and a trail
/// takes it back. Each node in turn is tried as the one that makes the pattern's first result.
class Search {
 public:
  Search(const Graph& graph, const Pattern& pattern, const std::string& path)
      : graph_(graph),
        pattern_(pattern),
        plan_(detail::plan_search(pattern)),
        facts_(graph, path),
        values_(pattern.values.size(), kNone),
        taken_by_call_(pattern.calls.size(), kNone),
        used_(num_node_ids(graph), false),
        taken_(num_node_ids(graph), false) {
    for (const Pattern::Call& call : pattern.calls) {
      selectors_.push_back(call.regex.empty()
                               ? detail::ModuleSelector::by_type(call.type)
                               : detail::ModuleSelector::by_name("call_module", call.regex));
      if (call.op == nullptr && !modules_) modules_.emplace(facts_);
    }
    bindings_.values = values_;
    bindings_.capture = [this](int capture, const AttrValue& given) {
      const auto [known, is_new] = captures_.emplace(capture, given);
      if (is_new) trail_.push_back({Undo::capture, capture});
      return is_new || equal(known->second, given);
    };
  }

  Matches run() {
    const Pattern::Call& first = call_of(plan_[0]);
    const auto result = static_cast<std::size_t>(
        pattern_.values[static_cast<std::size_t>(pattern_.outputs[0])].index);
    for (NodeId id : graph_.order()) {
      const Node& node = graph_.node(id);
      ++comparisons_;
      if (used_[static_cast<std::size_t>(id)]) continue;
      if (first.op != nullptr) {
        if (node.op != first.op) continue;
        home_ = graph_.visible_call(id);
        if (!facts_.is_seen(home_)) continue;
        if (result < node.outputs.size()) try_at(id, node.outputs[result]);
        continue;
      }
      for (ValueId output : node.outputs) {
        if (!modules_->that_return(output).empty()) try_at(id, output);
      }
    }
    return {std::move(found_), misses_.report(graph_, pattern_, selectors_), comparisons_};
  }

 private:
  enum class Undo : std::uint8_t { value, node, module, capture };
  struct Trail {
    Undo kind;
    int index;
  };

  const Pattern::Call& call_of(const Step& step) const {
    return pattern_.calls[static_cast<std::size_t>(step.call)];
  }
  ValueId& bound(int value) { return values_[static_cast<std::size_t>(value)]; }

  void try_at(NodeId anchor, ValueId value) {
    misses_.begin();
    values_[static_cast<std::size_t>(pattern_.outputs[0])] = value;
    trail_.push_back({Undo::value, pattern_.outputs[0]});
    if (!advance(0)) misses_.end(anchor);
    roll_back(0);
  }

  void roll_back(std::size_t mark) {
    for (; trail_.size() > mark; trail_.pop_back()) {
      const auto [kind, index] = trail_.back();
      if (kind == Undo::value) {
        bound(index) = kNone;
      } else if (kind == Undo::capture) {
        captures_.erase(index);
      } else {
        std::int32_t& stands_for = taken_by_call_[static_cast<std::size_t>(index)];
        if (kind == Undo::node) taken_[static_cast<std::size_t>(stands_for)] = false;
        stands_for = kNone;
        --matched_;
      }
    }
  }

  /// Notes why nothing fits here; the attempt that got furthest is the one to tell of.
  bool miss(Mismatch mismatch) {
    if (misses_.is_furthest(matched_)) misses_.note(matched_, std::move(mismatch));
    return false;
  }

  /// Binds everything from this step on, if it can be done. What failed fails again with the same
  /// values bound, unless that was about the nodes of this very match: so many ways to one place cost
  /// no more than one.
  bool advance(std::size_t index) {
    if (index == plan_.size()) return complete();
    if (!plan_[index].remembers) return try_step(index);
    const std::string key = binding_key(index);
    if (const auto known = failed_.find(key); known != failed_.end()) {
      misses_.note(known->second);
      return false;
    }
    const std::size_t outer = std::exchange(earliest_needed_, kNoStep);
    const bool found = try_step(index);
    if (!found && earliest_needed_ >= index) failed_.emplace(key, misses_.current());
    earliest_needed_ = std::min(earliest_needed_, outer);
    return found;
  }

  std::string binding_key(std::size_t index) {
    std::string key;
    const auto add = [&](std::int32_t number) {
      key.append(reinterpret_cast<const char*>(&number), sizeof number);
    };
    add(static_cast<std::int32_t>(index));
    add(home_);
    for (int value : plan_[index].depends_on) add(bound(value));
    for (const auto& [capture, value] : captures_) {
      key += fmt::format(" {}={}", capture, to_string(value));
    }
    return key;
  }

  bool try_step(std::size_t index) {
    const Step& step = plan_[index];
    const bool is_op = call_of(step).op != nullptr;
    if (step.from < 0) return is_op ? climb_to_node(index) : climb_to_module(index);
    const ValueId value = bound(step.from);
    if (is_op) return try_producer(index, value);
    const std::vector<CallId>& candidates = modules_->that_return(value);
    if (candidates.empty()) return miss({Kind::no_module, value, kNone, step.call});
    return std::any_of(candidates.begin(), candidates.end(),
                       [&](CallId id) { return try_module(index, id); });
  }

  bool try_producer(std::size_t index, ValueId value) {
    const Value& v = graph_.value(value);
    if (v.kind != ValueKind::result) {
      return miss({Kind::no_result, value, kNone, plan_[index].call});
    }
    const Pattern::Value& wanted = pattern_.values[static_cast<std::size_t>(plan_[index].from)];
    if (v.output_index != wanted.index && graph_.node(v.producer).op == call_of(plan_[index]).op) {
      return miss({Kind::other_result, value});
    }
    return try_node(index, v.producer);
  }

  // --- ops --------------------------------------------------------------------------------------

  bool try_node(std::size_t index, NodeId id) {
    ++comparisons_;
    const Step& step = plan_[index];
    const Node& node = graph_.node(id);
    if (!accepts(step, node)) return false;
    const bool swaps = step.swaps && node.inputs[0] != node.inputs[1];
    for (const bool swapped : {false, true}) {
      if (swapped && !swaps) break;
      const std::size_t mark = trail_.size();
      if (take_node(step, node, swapped) && check_from(step) && advance(index + 1)) return true;
      roll_back(mark);
    }
    return false;
  }

  /// What can be told of a node without binding anything.
  bool accepts(const Step& step, const Node& node) {
    const Pattern::Call& call = call_of(step);
    if (node.op != call.op) return miss({Kind::other_op, node.id, kNone, step.call});
    if (graph_.visible_call(node.id) != home_) return miss({Kind::other_module, node.id});
    if (node.op->has(Trait::effect)) return miss({Kind::effect, node.id});
    for (CallId c = node.call; c != kNone && c != home_; c = graph_.call(c).parent) {
      if (graph_.call(c).has_hooks) return miss({Kind::hooked_node, node.id});
    }
    const auto place = static_cast<std::size_t>(node.id);
    if (used_[place] || taken_[place]) {
      if (taken_[place]) earliest_needed_ = 0;
      return miss({Kind::matched, node.id});
    }
    if (node.inputs.size() != call.inputs.size()) {
      return miss({Kind::operand_count, node.id, kNone, step.call});
    }
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      if ((node.inputs[i] == kNone) != (call.inputs[i] < 0)) {
        return miss({Kind::operand, node.id, kNone, step.call, i});
      }
    }
    return true;
  }

  bool take_node(const Step& step, const Node& node, bool swapped) {
    const Pattern::Call& call = call_of(step);
    taken_by_call_[static_cast<std::size_t>(step.call)] = node.id;
    taken_[static_cast<std::size_t>(node.id)] = true;
    trail_.push_back({Undo::node, step.call});
    ++matched_;
    for (const detail::PatternField& field : step.fields) {
      if (!fits(field, graph_, node, bindings_)) {
        return miss({Kind::attribute, node.id, kNone, step.call, field.index});
      }
    }
    if (!bind_results(call, node)) return false;
    for (std::size_t i = 0; i < call.inputs.size(); ++i) {
      const std::size_t from = swapped ? 1 - i : i;
      if (call.inputs[i] >= 0 && !bind(call.inputs[i], node.inputs[from])) return false;
    }
    return true;
  }

  /// Results that the pattern leaves alone may be used by nobody: a match would lose them.
  bool bind_results(const Pattern::Call& call, const Node& node) {
    const auto offered = static_cast<std::size_t>(call.num_outputs);
    for (std::size_t i = 0; i < std::max(node.outputs.size(), offered); ++i) {
      const int value = call.output + static_cast<int>(i);
      const bool is_used = i < offered && pattern_.values[static_cast<std::size_t>(value)].uses > 0;
      if (i >= node.outputs.size()) {
        if (is_used) return miss({Kind::result_count, node.id, kNone, -1, i});
      } else if (is_used) {
        if (!bind(value, node.outputs[i])) return false;
      } else if (!check_unused(node.outputs[i])) {
        return false;
      }
    }
    return true;
  }

  bool check_unused(ValueId value) {
    const std::vector<Use>& uses = graph_.value(value).uses;
    if (!uses.empty()) return miss({Kind::escape, value, uses[0].node});
    return !facts_.run_results.contains(value) || miss({Kind::escape, value});
  }

  bool bind(int number, ValueId value) {
    ValueId& known = bound(number);
    if (known == value) return true;
    if (known != kNone) return miss({Kind::bound_value, value, known});
    const Value& given = graph_.value(value);
    const Pattern::Value& wanted = pattern_.values[static_cast<std::size_t>(number)];
    const bool is_state = given.kind != ValueKind::result && given.kind != ValueKind::input;
    if (wanted.kind == Pattern::Value::Kind::state && !is_state) {
      return miss({Kind::no_state, value});
    }
    known = value;
    trail_.push_back({Undo::value, number});
    // A look ahead at the op, so that the wrong order of operands costs next to nothing.
    const Pattern::Call* maker = pattern_.maker(number);
    if (maker == nullptr || maker->op == nullptr) return true;
    ++comparisons_;
    if (given.kind != ValueKind::result) {
      return miss({Kind::no_result, value, kNone, wanted.call});
    }
    if (graph_.node(given.producer).op != maker->op) {
      return miss({Kind::other_op, given.producer, kNone, wanted.call});
    }
    return true;
  }

  // --- modules ----------------------------------------------------------------------------------

  bool try_module(std::size_t index, CallId id) {
    ++comparisons_;
    const Step& step = plan_[index];
    const std::size_t mark = trail_.size();
    if (index == 0) home_ = facts_.home_of_call(id);
    if (accepts(step, graph_.call(id)) && take_module(step, graph_.call(id)) && check_from(step) &&
        advance(index + 1)) {
      return true;
    }
    roll_back(mark);
    return false;
  }

  bool accepts(const Step& step, const ModuleCall& module) {
    if (!selectors_[static_cast<std::size_t>(step.call)].selects(module, facts_.path)) {
      return miss({Kind::module_name, module.id, kNone, step.call});
    }
    if (module.has_hooks) return miss({Kind::hooked_module, module.id});
    if (facts_.home_of_call(module.id) != home_) return miss({Kind::inner_module, module.id});
    if (module.inputs.size() != call_of(step).inputs.size()) {
      return miss({Kind::module_inputs, module.id, kNone, step.call});
    }
    if (module.outputs.size() != 1) return miss({Kind::module_outputs, module.id});
    const std::string& fault = modules_->fault(module.id);
    return fault.empty() || miss({Kind::module_fault, module.id, kNone, step.call, 0, &fault});
  }

  bool take_module(const Step& step, const ModuleCall& module) {
    const Pattern::Call& call = call_of(step);
    taken_by_call_[static_cast<std::size_t>(step.call)] = module.id;
    trail_.push_back({Undo::module, step.call});
    ++matched_;
    if (!bind(call.output, module.outputs[0])) return false;
    for (std::size_t i = 0; i < call.inputs.size(); ++i) {
      if (!bind(call.inputs[i], module.inputs[i])) return false;
    }
    return true;
  }

  // --- from bound values up to what reads them --------------------------------------------------

  /// The bound operand with the fewest users.
  ValueId narrowest(const Pattern::Call& call) {
    ValueId best = kNone;
    for (int input : call.inputs) {
      const ValueId value = input < 0 ? kNone : bound(input);
      if (value == kNone) continue;
      if (best == kNone || graph_.value(value).uses.size() < graph_.value(best).uses.size()) {
        best = value;
      }
    }
    return best;
  }

  bool climb_to_node(std::size_t index) {
    const Pattern::Call& call = call_of(plan_[index]);
    const ValueId from = narrowest(call);
    Users& users = users_of(from, call.op);
    while (users.next < users.nodes.size() &&
           used_[static_cast<std::size_t>(users.nodes[users.next])]) {
      ++users.next;
    }
    if (users.next == users.nodes.size()) {
      return miss({Kind::no_user, from, kNone, plan_[index].call});
    }
    for (std::size_t i = users.next; i < users.nodes.size(); ++i) {
      if (try_node(index, users.nodes[i])) return true;
    }
    return false;
  }

  bool climb_to_module(std::size_t index) {
    const ValueId from = narrowest(call_of(plan_[index]));
    const std::vector<CallId>& candidates = modules_->that_take(from);
    if (candidates.empty()) return miss({Kind::no_user, from, kNone, plan_[index].call});
    return std::any_of(candidates.begin(), candidates.end(),
                       [&](CallId id) { return try_module(index, id); });
  }

  /// The nodes of an op that read a value, in program order; those before `next` are in matches.
  struct Users {
    std::vector<NodeId> nodes;
    std::size_t next = 0;
  };

  Users& users_of(ValueId value, const Op* op) {
    auto& by_op = users_[value];
    const auto known = by_op.find(op);
    if (known != by_op.end()) return known->second;
    Users& users = by_op[op];
    for (const Use& use : graph_.value(value).uses) {
      ++comparisons_;
      if (graph_.node(use.node).op == op) users.nodes.push_back(use.node);
    }
    const auto earlier = [&](NodeId a, NodeId b) {
      return graph_.position(a) < graph_.position(b);
    };
    std::sort(users.nodes.begin(), users.nodes.end(), earlier);
    users.nodes.erase(std::unique(users.nodes.begin(), users.nodes.end()), users.nodes.end());
    return users;
  }

  // --- what is checked once enough is bound -----------------------------------------------------

  bool check_from(const Step& step) {
    for (const auto& [call, field] : step.sized_fields) {
      const NodeId id = taken_by_call_[static_cast<std::size_t>(call)];
      if (!fits(field, graph_, graph_.node(id), bindings_)) {
        return miss({Kind::attribute, id, kNone, call, field.index});
      }
    }
    for (const auto& [value, first_step] : step.closed) {
      if (check_closed(bound(value))) continue;
      const std::size_t needed = modules_ ? 0 : static_cast<std::size_t>(first_step);
      earliest_needed_ = std::min(earliest_needed_, needed);
      return false;
    }
    return true;
  }

  /// Nobody outside of the match needs an intermediate all of whose users in the pattern are bound.
  bool check_closed(ValueId value) {
    for (const Use& use : graph_.value(value).uses) {
      if (!is_inside(use.node)) return miss({Kind::escape, value, use.node});
    }
    return !facts_.run_results.contains(value) || miss({Kind::escape, value});
  }

  bool is_inside(NodeId id) const {
    if (taken_[static_cast<std::size_t>(id)]) return true;
    if (!modules_) return false;
    for (std::size_t i = 0; i < pattern_.calls.size(); ++i) {
      if (pattern_.calls[i].op != nullptr || taken_by_call_[i] == kNone) continue;
      if (graph_.is_within(graph_.node(id).call, taken_by_call_[i])) return true;
    }
    return false;
  }

  /// Everything is bound: what is left to ask concerns the match as a whole.
  bool complete() {
    Subgraph match;
    earliest_needed_ = 0;
    if (!collect_nodes(match)) return false;
    for (int i = 0; i < pattern_.parameters; ++i) {
      const NodeId producer = graph_.value(bound(i)).producer;
      if (producer != kNone && is_inside(producer)) return miss({Kind::inside_input, bound(i)});
      match.inputs.push_back(bound(i));
    }
    for (int output : pattern_.outputs) match.outputs.push_back(bound(output));
    if (match.outputs.size() > 1) {
      const auto between = detail::find_between(graph_, match.nodes);
      if (between) return miss({Kind::between, between->node, between->reads});
    }
    match.captures = captures_;
    for (NodeId id : match.nodes) {
      used_[static_cast<std::size_t>(id)] = true;
      match.operands.push_back(graph_.node(id).inputs);
      match.ops[id] = {graph_.node(id).op, graph_.node(id).attrs};
      match.names.emplace_back(
          detail::relative_path(graph_.call(graph_.visible_call(id)).path, facts_.path),
          graph_.node(id).name);
    }
    found_.push_back(std::move(match));
    return true;
  }

  bool collect_nodes(Subgraph& match) {
    for (std::size_t i = 0; i < pattern_.calls.size(); ++i) {
      if (pattern_.calls[i].op != nullptr) {
        match.nodes.push_back(taken_by_call_[i]);
        continue;
      }
      for (NodeId id : graph_.nodes_within(taken_by_call_[i])) {
        if (used_[static_cast<std::size_t>(id)]) return miss({Kind::matched, id});
        match.nodes.push_back(id);
      }
    }
    std::sort(match.nodes.begin(), match.nodes.end(),
              [&](NodeId a, NodeId b) { return graph_.position(a) < graph_.position(b); });
    const auto twice = std::adjacent_find(match.nodes.begin(), match.nodes.end());
    return twice == match.nodes.end() || miss({Kind::matched, *twice});
  }

  const Graph& graph_;
  const Pattern& pattern_;
  const std::vector<Step> plan_;
  detail::GraphFacts facts_;
  std::optional<detail::ModuleFacts> modules_;     // if the pattern calls any
  std::vector<detail::ModuleSelector> selectors_;  // by call

  // What is bound now. `home_` is the call that all of the match is seen in.
  std::vector<ValueId> values_;              // by value of the pattern
  std::vector<std::int32_t> taken_by_call_;  // by call of the pattern: its node or module call
  std::map<int, AttrValue> captures_;
  detail::PatternBindings bindings_;
  std::vector<Trail> trail_;
  CallId home_ = 0;
  int matched_ = 0;  // calls that stand for something

  std::vector<bool> used_;   // by node: in a match
  std::vector<bool> taken_;  // by node: stands for an op of the pattern now
  std::unordered_map<ValueId, std::unordered_map<const Op*, Users>> users_;
  std::unordered_map<std::string, detail::NearMissLog::Attempt> failed_;
  // The first step whose nodes, beside its values, failures since then were about.
  static constexpr std::size_t kNoStep = SIZE_MAX;
  std::size_t earliest_needed_ = kNoStep;
  std::vector<Subgraph> found_;
  detail::NearMissLog misses_;
  std::int64_t comparisons_ = 0;
};

}  // namespace

bool is_below(const std::string& path, const std::string& ancestor) {
  return ancestor.empty() || path == ancestor ||
         (path.size() > ancestor.size() && path.compare(0, ancestor.size(), ancestor) == 0 &&
          path[ancestor.size()] == '.');
}

std::string Matches::to_string() const {
  std::string text = "[";
  for (const Subgraph& subgraph : subgraphs_) {
    if (text.size() > 1) text += ", ";
    text += "[";
    for (std::size_t i = 0; i < subgraph.names.size(); ++i) {
      text += fmt::format("{}('{}', {})", i > 0 ? ", " : "", subgraph.names[i].first,
                          subgraph.names[i].second);
    }
    text += "]";
  }
  return text + "]";
}

std::string Matches::explain() const {
  std::string text;
  for (const NearMiss& miss : near_misses_) {
    text += fmt::format("{}near miss at {}: {}", text.empty() ? "" : "\n", miss.node, miss.reason);
  }
  return text.empty() ? "no node begins to match" : text;
}

std::ostream& operator<<(std::ostream& stream, const Matches& matches) {
  return stream << matches.to_string();
}

Matches find_matches(const Graph& graph, const Pattern& pattern, const std::string& path) {
  return Search(graph, pattern, path).run();
}

}  // namespace tenon
