#include "schedule/matcher.h"

#include <algorithm>
#include <optional>
#include <ostream>
#include <regex>
#include <unordered_map>
#include <unordered_set>

#include "tensor/detail/check.h"

namespace tenon {
namespace {

/// What pattern values and calls stand for so far. Copied to try an alternative.
struct Bindings {
  std::vector<ValueId> values;
  std::unordered_map<const Pattern::Call*, NodeId> nodes;
  std::unordered_map<const Pattern::Call*, CallId> modules;
  std::unordered_set<NodeId> taken;
  std::map<int, AttrValue> captures;
};

std::string relative(const std::string& path, const std::string& base) {
  if (base.empty()) return path;
  return path.size() > base.size() ? path.substr(base.size() + 1) : std::string();
}

class Matcher {
 public:
  Matcher(const Graph& graph, const Pattern& pattern, const std::string& path)
      : graph_(graph), pattern_(pattern), path_(path) {
    for (const Pattern::Call& call : pattern.calls) {
      if (call.op == nullptr) regexes_.emplace(&call, std::regex(call.regex));
    }
    for (const ModuleCall& call : graph.calls()) {
      if (call.outputs.size() == 1 && is_below(call.path, path)) {
        calls_by_output_[call.outputs[0]].push_back(call.id);
      }
    }
  }

  Matches run() {
    for (NodeId id : graph_.order()) {
      const Node& node = graph_.node(id);
      visible_ = graph_.visible_call(id);
      if (!is_below(graph_.call(visible_).path, path_)) continue;
      for (ValueId output : node.outputs) try_at(output);
    }
    return {std::move(found_), std::move(near_misses_)};
  }

 private:
  void try_at(ValueId output) {
    fitted_ = 0;
    reason_.clear();
    Bindings bindings;
    bindings.values.assign(static_cast<std::size_t>(pattern_.parameters) + pattern_.calls.size(),
                           kNone);
    std::optional<Subgraph> match;
    if (match_value(pattern_.output, output, bindings)) match = make_match(bindings, output);
    if (match) {
      used_.insert(match->nodes.begin(), match->nodes.end());
      found_.push_back(std::move(*match));
    } else if (fitted_ > 0) {
      const NodeId producer = graph_.value(output).producer;
      near_misses_.push_back({graph_.full_name(producer), fitted_, reason_});
    }
  }

  /// Remembers the reason of the attempt that got furthest.
  bool fail(const Bindings& bindings, std::string reason) {
    const int depth = static_cast<int>(bindings.nodes.size() + bindings.modules.size());
    if (depth > fitted_ || reason_.empty()) {
      fitted_ = std::max(fitted_, depth);
      reason_ = std::move(reason);
    }
    return false;
  }

  bool match_value(int pattern_value, ValueId value, Bindings& bindings) {
    ValueId& bound = bindings.values[static_cast<std::size_t>(pattern_value)];
    if (bound != kNone) {
      return bound == value ||
             fail(bindings, fmt::format("{} is used where the pattern has {}",
                                        graph_.value_name(value), graph_.value_name(bound)));
    }
    const Pattern::Call* call = pattern_.maker(pattern_value);
    if (call == nullptr) {
      bound = value;
      return true;
    }
    return call->op == nullptr ? match_module(*call, value, bindings)
                               : match_node(*call, value, bindings);
  }

  bool match_module(const Pattern::Call& call, ValueId value, Bindings& bindings) {
    const auto candidates = calls_by_output_.find(value);
    if (candidates != calls_by_output_.end()) {
      for (CallId id : candidates->second) {
        const ModuleCall& module = graph_.call(id);
        const std::regex& regex = regexes_.at(&call);
        if (!std::regex_match(module.name(), regex) &&
            !std::regex_match(relative(module.path, path_), regex)) {
          fail(bindings, fmt::format("module '{}' does not match \"{}\" as a whole", module.path,
                                     call.regex));
          continue;
        }
        Bindings attempt = bindings;
        if (take_module(call, module, value, attempt)) {
          bindings = std::move(attempt);
          return true;
        }
      }
      return false;
    }
    return fail(bindings, fmt::format("{} is not the result of a module call matching \"{}\"",
                                      graph_.value_name(value), call.regex));
  }

  bool take_module(const Pattern::Call& call, const ModuleCall& module, ValueId value,
                   Bindings& bindings) {
    if (module.has_hooks) {
      return fail(bindings, fmt::format("module '{}' has a hook", module.path));
    }
    if (module.parent != kNone && !sees(module.parent, module)) {
      return fail(bindings, fmt::format("module '{}' belongs to '{}', another module's inside",
                                        module.path, graph_.call(module.parent).path));
    }
    if (module.inputs.size() != call.inputs.size()) {
      return fail(bindings, fmt::format("module '{}' takes {} tensors; the pattern gives {}",
                                        module.path, module.inputs.size(), call.inputs.size()));
    }
    for (NodeId id : graph_.nodes_within(module.id)) {
      if (used_.contains(id) || !bindings.taken.insert(id).second) {
        return fail(bindings, fmt::format("{} is matched already", graph_.full_name(id)));
      }
    }
    bindings.modules[&call] = module.id;
    bindings.values[static_cast<std::size_t>(call.output)] = value;
    for (std::size_t i = 0; i < call.inputs.size(); ++i) {
      if (!match_value(call.inputs[i], module.inputs[i], bindings)) return false;
    }
    return true;
  }

  /// The module's call is seen from the call that the match lies in.
  bool sees(CallId parent, const ModuleCall& module) const {
    if (parent == visible_ || module.id == visible_) return true;
    for (CallId c = parent; c != kNone; c = graph_.call(c).parent) {
      if (c == visible_) return graph_.call(c).flattened;
    }
    return false;
  }

  bool match_node(const Pattern::Call& call, ValueId value, Bindings& bindings) {
    const Value& v = graph_.value(value);
    if (v.kind != ValueKind::result) {
      return fail(bindings,
                  fmt::format("{} is not a result of {}", graph_.value_name(value), call.op->name));
    }
    const Node& node = graph_.node(v.producer);
    const std::string name = graph_.full_name(node.id);
    if (const auto known = bindings.nodes.find(&call); known != bindings.nodes.end()) {
      return known->second == node.id ||
             fail(bindings, fmt::format("{} stands for two calls of the pattern", name));
    }
    if (node.op != call.op) {
      return fail(bindings,
                  fmt::format("{} is {}; the pattern has {}", name, node.op->name, call.op->name));
    }
    if (graph_.visible_call(node.id) != visible_) {
      return fail(bindings, fmt::format("{} lies inside another module than the rest; "
                                        "trace({{.flatten = true}}) shows them as one",
                                        name));
    }
    if (hooked(node))
      return fail(bindings, fmt::format("{} belongs to a module with a hook", name));
    if (used_.contains(node.id) || bindings.taken.contains(node.id)) {
      return fail(bindings, fmt::format("{} is matched already", name));
    }
    if (node.inputs.size() != call.inputs.size()) {
      return fail(bindings, fmt::format("{} has {} operands; the pattern has {}", name,
                                        node.inputs.size(), call.inputs.size()));
    }
    std::vector<std::size_t> order(call.inputs.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const bool swappable = call.op->has(Trait::commutative) && order.size() == 2 &&
                           node.inputs[0] != kNone && node.inputs[1] != kNone;
    Bindings attempt = bindings;
    if (take_node(call, node, order, attempt)) {
      bindings = std::move(attempt);
      return true;
    }
    if (!swappable) return false;
    std::swap(order[0], order[1]);
    attempt = bindings;
    if (!take_node(call, node, order, attempt)) return false;
    bindings = std::move(attempt);
    return true;
  }

  bool hooked(const Node& node) const {
    for (CallId c = node.call; c != kNone && c != visible_; c = graph_.call(c).parent) {
      if (graph_.call(c).has_hooks) return true;
    }
    return false;
  }

  bool take_node(const Pattern::Call& call, const Node& node, const std::vector<std::size_t>& order,
                 Bindings& bindings) {
    bindings.nodes[&call] = node.id;
    bindings.taken.insert(node.id);
    bindings.values[static_cast<std::size_t>(call.output)] = node.outputs.at(0);
    for (std::size_t i = 0; i < order.size(); ++i) {
      const ValueId operand = node.inputs[order[i]];
      const int wanted = call.inputs[i];
      if ((operand == kNone) != (wanted < 0)) {
        return fail(bindings,
                    fmt::format("{} {} operand '{}', unlike the pattern", graph_.full_name(node.id),
                                operand == kNone ? "lacks" : "has",
                                node.op->operands[std::min(i, node.op->operands.size() - 1)].name));
      }
      if (operand != kNone && !match_value(wanted, operand, bindings)) return false;
    }
    return match_attrs(call, node, bindings);
  }

  bool match_attrs(const Pattern::Call& call, const Node& node, Bindings& bindings) {
    for (std::size_t i = 0; i < call.attrs.size(); ++i) {
      const AttrValue wanted = call.attrs.value(i);
      const AttrValue given = node.attrs.value(i);
      if (const WildcardInfo wildcard = wildcard_info(wanted); wildcard.is_wildcard) {
        if (wildcard.capture < 0) continue;
        const auto [known, inserted] = bindings.captures.emplace(wildcard.capture, given);
        if (inserted || equal(known->second, given)) continue;
      } else if (call.attrs.kind(i) == FieldKind::site ||
                 same_attribute(wanted, given, call.attrs.kind(i), node, bindings)) {
        continue;
      }
      return fail(bindings,
                  fmt::format("{} has {}={}; the pattern has {}", graph_.full_name(node.id),
                              node.attrs.name(i), to_string(given), to_string(wanted)));
    }
    return true;
  }

  bool same_attribute(const AttrValue& wanted, const AttrValue& given, FieldKind kind,
                      const Node& node, const Bindings& bindings) const {
    if (wanted.index() != given.index()) return false;
    if (kind == FieldKind::axis || kind == FieldKind::axes || kind == FieldKind::axis_set) {
      return same_axes(wanted, given, kind, node);
    }
    if (const auto* shape = std::get_if<Shape>(&wanted)) {
      return same_shape(*shape, std::get<Shape>(given), bindings);
    }
    if (const auto* dim = std::get_if<Dim>(&wanted)) {
      const auto known = known_size(*dim, bindings);
      return known && known->same_as(std::get<Dim>(given));
    }
    if (const auto* scalar = std::get_if<Scalar>(&wanted)) {
      bool complete = true;
      const Scalar known = scalar->substitute([&](const detail::DimSymbol& symbol) {
        const auto size = size_of_symbol(symbol, bindings);
        complete &= size.has_value();
        return size;
      });
      return complete && known.same_as(std::get<Scalar>(given));
    }
    return equal(wanted, given);
  }

  /// Axes of the pattern are normalized by the ranks of the node that they are compared with.
  bool same_axes(const AttrValue& wanted, const AttrValue& given, FieldKind kind,
                 const Node& node) const {
    int rank = graph_.value(node.outputs.at(0)).spec.shape.rank();
    for (ValueId input : node.inputs) {
      if (input != kNone) rank = std::max(rank, graph_.value(input).spec.shape.rank());
    }
    const auto normal = [&](std::int64_t axis) { return axis < 0 ? axis + rank : axis; };
    if (const auto* axis = std::get_if<std::int64_t>(&wanted)) {
      return normal(*axis) == std::get<std::int64_t>(given);
    }
    std::vector<std::int64_t> axes = std::get<std::vector<std::int64_t>>(wanted);
    std::vector<std::int64_t> other = std::get<std::vector<std::int64_t>>(given);
    std::transform(axes.begin(), axes.end(), axes.begin(), normal);
    if (kind == FieldKind::axis_set) {
      std::sort(axes.begin(), axes.end());
      std::sort(other.begin(), other.end());
    }
    return axes == other;
  }

  bool same_shape(const Shape& wanted, const Shape& given, const Bindings& bindings) const {
    if (wanted.rank() != given.rank()) return false;
    for (int axis = 0; axis < wanted.rank(); ++axis) {
      if (wanted[axis].is_wildcard() || wanted[axis].same_as(Dim(-1))) continue;
      const auto known = known_size(wanted[axis], bindings);
      if (!known || !known->same_as(given[axis])) return false;
    }
    return true;
  }

  std::optional<Dim> size_of_symbol(const detail::DimSymbol& symbol,
                                    const Bindings& bindings) const {
    if (symbol.kind != detail::DimSymbol::Kind::pattern) return std::nullopt;
    const ValueId value = bindings.values[static_cast<std::size_t>(symbol.pattern_value)];
    if (value == kNone) return std::nullopt;
    const Shape& shape = graph_.value(value).spec.shape;
    const int axis = symbol.pattern_axis;
    if (axis >= shape.rank() || axis < -shape.rank()) return std::nullopt;
    return shape[axis];
  }

  std::optional<Dim> known_size(const Dim& dim, const Bindings& bindings) const {
    bool complete = true;
    const Dim result = dim.substitute([&](const detail::DimSymbol& symbol) {
      const auto size = size_of_symbol(symbol, bindings);
      complete &= size.has_value();
      return size;
    });
    return complete ? std::optional(result) : std::nullopt;
  }

  std::optional<Subgraph> make_match(const Bindings& bindings, ValueId output) {
    Subgraph match;
    match.outputs = {output};
    match.captures = bindings.captures;
    match.inputs.assign(bindings.values.begin(), bindings.values.begin() + pattern_.parameters);
    match.nodes.assign(bindings.taken.begin(), bindings.taken.end());
    std::sort(match.nodes.begin(), match.nodes.end(),
              [&](NodeId a, NodeId b) { return graph_.position(a) < graph_.position(b); });
    for (NodeId id : match.nodes) {
      for (ValueId inner : graph_.node(id).outputs) {
        if (inner == output) continue;
        if (const std::string where = escape(inner, bindings.taken); !where.empty()) {
          fail(bindings, fmt::format("{} is an intermediate of the match and is also used by {}",
                                     graph_.value_name(inner), where));
          return std::nullopt;
        }
      }
      match.operands.push_back(graph_.node(id).inputs);
      match.names.emplace_back(relative(graph_.call(graph_.visible_call(id)).path, path_),
                               graph_.node(id).name);
    }
    return match;
  }

  /// Who outside of the match needs a value, or "".
  std::string escape(ValueId value, const std::unordered_set<NodeId>& inside) const {
    for (const Use& use : graph_.value(value).uses) {
      if (!inside.contains(use.node)) return graph_.full_name(use.node);
    }
    const auto& outputs = graph_.outputs();
    return std::find(outputs.begin(), outputs.end(), value) == outputs.end() ? ""
                                                                             : "the graph's output";
  }

  const Graph& graph_;
  const Pattern& pattern_;
  const std::string& path_;
  std::unordered_map<const Pattern::Call*, std::regex> regexes_;
  std::unordered_map<ValueId, std::vector<CallId>> calls_by_output_;
  std::unordered_set<NodeId> used_;
  std::vector<Subgraph> found_;
  std::vector<NearMiss> near_misses_;
  CallId visible_ = 0;
  int fitted_ = 0;
  std::string reason_;
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
  std::vector<NearMiss> sorted = near_misses_;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const NearMiss& a, const NearMiss& b) { return a.matched > b.matched; });
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(sorted.size(), 8); ++i) {
    text +=
        fmt::format("{}near miss at {}: {}", i > 0 ? "\n" : "", sorted[i].node, sorted[i].reason);
  }
  return text.empty() ? "no node begins to match" : text;
}

std::ostream& operator<<(std::ostream& stream, const Matches& matches) {
  return stream << matches.to_string();
}

Matches find_matches(const Graph& graph, const Pattern& pattern, const std::string& path) {
  return Matcher(graph, pattern, path).run();
}

Matches find_modules(const Graph& graph, const std::string& regex, const std::string& path) {
  std::regex compiled;
  try {
    compiled = std::regex(regex);
  } catch (const std::regex_error& error) {
    detail::fail<ScheduleError>("find: '{}' is not a valid regular expression: {}",
                                regex.substr(0, 80), error.what());
  }
  std::vector<Subgraph> found;
  for (const ModuleCall& call : graph.calls()) {
    if (call.path == path || !is_below(call.path, path)) continue;
    if (!std::regex_match(call.name(), compiled) &&
        !std::regex_match(relative(call.path, path), compiled)) {
      continue;
    }
    Subgraph subgraph;
    subgraph.nodes = graph.nodes_within(call.id);
    if (subgraph.nodes.empty() || call.outputs.size() != 1) continue;
    subgraph.inputs = call.inputs;
    subgraph.outputs = {call.outputs[0]};
    for (NodeId id : subgraph.nodes) {
      subgraph.operands.push_back(graph.node(id).inputs);
      subgraph.names.emplace_back(relative(graph.call(graph.visible_call(id)).path, path),
                                  graph.node(id).name);
    }
    found.push_back(std::move(subgraph));
  }
  return {std::move(found), {}};
}

}  // namespace tenon
