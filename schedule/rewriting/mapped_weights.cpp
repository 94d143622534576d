#include "schedule/rewriting/mapped_weights.h"

#include <algorithm>

#include "graph/tracer.h"
#include "tensor/ops/attributes.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// The model's parameters that the nodes of a match read, in program and operand order.
std::vector<ValueId> parameters_of(const Graph& graph, const Subgraph& match) {
  std::vector<ValueId> parameters;
  for (NodeId node : match.nodes) {
    for (ValueId id : graph.node(node).inputs) {
      if (id == kNone || graph.value(id).kind != ValueKind::parameter) continue;
      if (std::find(parameters.begin(), parameters.end(), id) == parameters.end()) {
        parameters.push_back(id);
      }
    }
  }
  return parameters;
}

class WeightMapper {
 public:
  WeightMapper(Graph& graph, const ReplacingCall& call) : graph_(graph), call_(call) {
    for (const Subgraph* branch : call.branches) {
      inside_.insert(branch->nodes.begin(), branch->nodes.end());
      for (ValueId id : parameters_of(graph, *branch)) {
        if (std::find(matched_.begin(), matched_.end(), id) == matched_.end()) {
          matched_.push_back(id);
        }
      }
    }
  }

  void run() {
    check_names();
    std::vector<ValueId> parameters;
    std::vector<ValueId> buffers;
    for (ValueId id : graph_.values()) {
      if (call_.known.contains(id)) continue;
      if (graph_.value(id).kind == ValueKind::parameter) parameters.push_back(id);
      if (graph_.value(id).kind == ValueKind::buffer) buffers.push_back(id);
    }
    for (std::size_t i = 0; i < parameters.size(); ++i) map_parameter(parameters, i);
    for (ValueId id : buffers) map_buffer(id);
  }

 private:
  const std::string& replacement() const { return call_.replacement.name; }
  std::string own_name(ValueId id) const {
    return graph_.value(id).name.substr(call_.state_prefix.size() + 1);
  }

  void check_names() const {
    const auto parameters = call_.replacement.module->named_parameters(true);
    for (const auto& [name, source] : call_.weights) {
      const bool known = std::any_of(parameters.begin(), parameters.end(),
                                     [&, n = name](const auto& entry) { return entry.first == n; });
      TENON_CHECK(known, ScheduleError, "weights: {} has no parameter '{}'", replacement(), name);
    }
  }

  void map_parameter(const std::vector<ValueId>& parameters, std::size_t i) {
    const ValueId own = parameters[i];
    const std::string name = own_name(own);
    const auto given = call_.weights.find(name);
    if (given != call_.weights.end() && given->second.is_fresh()) return;
    std::vector<ValueId> sources;
    const ValueId value = given != call_.weights.end() ? evaluate(name, given->second, sources)
                                                       : derive(name, parameters, i, sources);
    if (given != call_.weights.end()) sources = unique(sources);  // a map may take one in pieces
    check_joinable(graph_, sources, inside_, call_.known,
                   fmt::format("'{}' of {}", name, replacement()));
    const TensorSpec& needed = graph_.value(own).spec;
    TENON_CHECK(graph_.value(value).spec == needed, ScheduleError,
                "parameter '{}' of {} is {}; its sources make {}", name, replacement(),
                needed.to_string(), graph_.value(value).spec.to_string());
    graph_.replace_all_uses(own, value);
  }

  static std::vector<ValueId> unique(const std::vector<ValueId>& ids) {
    std::vector<ValueId> result;
    for (ValueId id : ids) {
      if (std::find(result.begin(), result.end(), id) == result.end()) result.push_back(id);
    }
    return result;
  }

  /// The state of that name of the module that is replaced as a whole, or kNone.
  ValueId namesake(const std::string& name, ValueKind kind) const {
    const std::string whole = call_.replaced_path.empty() ? name : call_.replaced_path + "." + name;
    for (ValueId id : call_.known) {
      const Value& value = graph_.value(id);
      if (value.kind == kind && value.name == whole) return id;
    }
    return kNone;
  }

  void map_buffer(ValueId own) {
    if (!call_.whole_module) return;
    const ValueId original = namesake(own_name(own), ValueKind::buffer);
    if (original == kNone || !(graph_.value(original).spec == graph_.value(own).spec)) return;
    const auto writes = graph_.writes();
    for (const StateWrite& write : writes) {
      if (write.state != own) continue;
      graph_.set_write(original, write.value);
      graph_.drop_write(own);
    }
    graph_.replace_all_uses(own, original);
  }

  /// Writes the nodes of a source, which are of the call and take their place before its own.
  ValueId evaluate(const std::string& name, const WeightSource& source,
                   std::vector<ValueId>& sources) {
    GraphBuilder builder(graph_, call_.position, call_.call);
    Tensor tensor;
    try {
      const InterpreterGuard guard(builder);
      tensor = source.evaluate([&](const std::string& wanted) {
        sources.push_back(find_source(wanted, name));
        return builder.tensor(sources.back());
      });
    } catch (const ScheduleError&) {
      throw;
    } catch (const Error& error) {
      fail<ScheduleError>("weights: '{}' of {} cannot be {}: {}", name, replacement(),
                          source.to_string(), error.what());
    }
    if (!builder.added().empty()) graph_.rename(builder.added().back(), last_component(name));
    return builder.value_of(tensor, "weights");
  }

  ValueId find_source(const std::string& wanted, const std::string& name) const {
    ValueId found = kNone;
    for (ValueId id : matched_) {
      const std::string& full = graph_.value(id).name;
      if (full == wanted) return id;
      if (!full.ends_with("." + wanted)) continue;
      TENON_CHECK(found == kNone, ScheduleError,
                  "weights: '{}' could be {} or {}; write the whole name", wanted,
                  graph_.value_name(found), graph_.value_name(id));
      found = id;
    }
    if (found != kNone) return found;
    for (ValueId id : call_.known) {
      const Value& value = graph_.value(id);
      if (value.kind == ValueKind::parameter && value.name == wanted) return id;
    }
    fail<ScheduleError>(
        "weights: the replaced nodes read no parameter '{}' (a source of '{}' of "
        "{}), and the model has none of that whole name; they read {}",
        wanted, name, replacement(), matched_.empty() ? "none" : matched_names());
  }

  std::string matched_names() const {
    std::string text;
    for (ValueId id : matched_) text += (text.empty() ? "" : ", ") + graph_.value(id).name;
    return text;
  }

  /// The replaced module's parameter of that name; or, for a replacement with as many parameters as
  /// every match has and the same last names, the concatenation of the matches' i-th ones.
  ValueId derive(const std::string& name, const std::vector<ValueId>& parameters, std::size_t i,
                 std::vector<ValueId>& sources) {
    if (call_.whole_module) {
      const ValueId same = namesake(name, ValueKind::parameter);
      if (same != kNone) {
        sources = {same};
        return same;
      }
    }
    for (const Subgraph* branch : call_.branches) {
      const std::vector<ValueId> own = parameters_of(graph_, *branch);
      TENON_CHECK(own.size() == parameters.size() &&
                      last_component(graph_.value(own[i]).name) == last_component(name),
                  ScheduleError,
                  "parameter '{}' of {} has no source: {} has {} parameters{}, the replacement {}; "
                  "name its sources in ReplaceOptions::weights",
                  name, replacement(),
                  graph_.full_name(graph_.value(branch->outputs.at(0)).producer), own.size(),
                  own.size() == parameters.size() ? " of other names" : "", parameters.size());
      sources.push_back(own[i]);
    }
    if (sources.size() == 1) return sources[0];
    const NodeId joined =
        graph_.add_node(get_op("cat"), sources, AxisAttrs{0}, call_.call, call_.position);
    graph_.rename(joined, last_component(name));
    return graph_.node(joined).outputs[0];
  }

  Graph& graph_;
  const ReplacingCall& call_;
  std::unordered_set<NodeId> inside_;
  std::vector<ValueId> matched_;  // parameters that the replaced nodes read
};

}  // namespace

std::string last_component(const std::string& name) { return name.substr(name.rfind('.') + 1); }

std::unordered_set<ValueId> value_set(const Graph& graph) {
  const std::vector<ValueId> values = graph.values();
  return {values.begin(), values.end()};
}

void map_weights(Graph& graph, const ReplacingCall& call) { WeightMapper(graph, call).run(); }

void check_joinable(const Graph& graph, const std::vector<ValueId>& sources,
                    const std::unordered_set<NodeId>& nodes,
                    const std::unordered_set<ValueId>& known, const std::string& joined) {
  const auto tied = [&](ValueId id) {
    const auto& uses = graph.value(id).uses;
    return std::any_of(uses.begin(), uses.end(), [&](const Use& use) {
      return !nodes.contains(use.node) && known.contains(graph.node(use.node).outputs.at(0));
    });
  };
  for (std::size_t i = 1; i < sources.size(); ++i) {
    const Value& first = graph.value(sources[0]);
    const Value& other = graph.value(sources[i]);
    TENON_CHECK(std::find(sources.begin(), sources.begin() + static_cast<std::ptrdiff_t>(i),
                          sources[i]) == sources.begin() + static_cast<std::ptrdiff_t>(i),
                ScheduleError, "{} would hold '{}' twice: the matches share that weight", joined,
                other.name);
    TENON_CHECK(first.tensor.impl()->requires_grad == other.tensor.impl()->requires_grad,
                ScheduleError, "'{}' and '{}' cannot be joined: one is frozen, the other is not",
                first.name, other.name);
    TENON_CHECK(tied(sources[0]) == tied(sources[i]), ScheduleError,
                "'{}' and '{}' cannot be joined: one is tied to another place of the model, the "
                "other is not",
                first.name, other.name);
  }
}

}  // namespace tenon::detail
