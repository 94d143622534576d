#include "schedule/primitives/replace.h"

#include <algorithm>
#include <set>

#include "graph/tracer.h"
#include "schedule/detail/state.h"
#include "tensor/detail/check.h"
#include "tensor/ops/attributes.h"

namespace tenon {
namespace {

using detail::active_sites;
using Branches = std::vector<const Subgraph*>;

std::string match_name(const Graph& graph, const Subgraph& match) {
  return graph.full_name(graph.value(match.outputs.at(0)).producer);
}

std::string input_names(const Graph& graph, const Subgraph& match) {
  std::string text;
  for (ValueId id : match.inputs) text += (text.empty() ? "" : ", ") + graph.value_name(id);
  return text;
}

/// Matches that share all inputs, in the order of their first one.
std::vector<Branches> group_by_inputs(const std::vector<Subgraph>& matches) {
  std::vector<Branches> groups;
  for (const Subgraph& match : matches) {
    const auto group = std::find_if(groups.begin(), groups.end(), [&](const Branches& branches) {
      return branches[0]->inputs == match.inputs;
    });
    if (group == groups.end()) {
      groups.push_back({&match});
    } else {
      group->push_back(&match);
    }
  }
  return groups;
}

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

/// The module's tree with its floating state at the dtype and device of what it is given, so that a
/// replacement is written without regard to where the model is.
ModuleTree tree_like(nn::Module& module, const TensorSpec& spec) {
  ModuleTree tree = detail::module_tree(module);
  for (ModuleTree::State& state : tree.states) {
    state.held = state.tensor;
    if (is_floating(state.held.dtype()) && is_floating(spec.dtype)) {
      state.held = state.held.to(spec.dtype);
    }
    state.held = state.held.to(spec.device);
  }
  return tree;
}

std::string last_component(const std::string& name) { return name.substr(name.rfind('.') + 1); }

/// One call of a replacement being written into the Graph.
class Rewrite {
 public:
  Rewrite(Graph& graph, const Replacement& replacement, const ReplaceOptions& options,
          Branches branches)
      : graph_(graph),
        replacement_(replacement),
        options_(options),
        branches_(std::move(branches)),
        position_(detail::position_after(graph, branches_[0]->inputs)) {}

  /// Returns what stands for the matches' results now, in their order.
  std::vector<ValueId> run() {
    std::vector<NodeId> matched;
    for (const Subgraph* branch : branches_) {
      matched.insert(matched.end(), branch->nodes.begin(), branch->nodes.end());
    }
    const std::vector<AttrValue> old_sites = active_sites(graph_, matched);
    for (ValueId id : graph_.values()) known_.insert(id);
    const std::vector<ValueId> outputs = record();
    give_weights();
    carry_sites(old_sites);
    for (std::size_t i = 0; i < branches_.size(); ++i) {
      detail::check_same_spec(graph_, branches_[i]->outputs[0], outputs[i], replacement_.name);
      graph_.replace_all_uses(branches_[i]->outputs[0], outputs[i]);
    }
    graph_.eliminate_dead_code();
    return outputs;
  }

 private:
  std::vector<ValueId> record() {
    CallId parent = detail::common_call(graph_, *branches_[0]);
    for (const Subgraph* branch : branches_) {
      const CallId call = detail::common_call(graph_, *branch);
      while (!graph_.is_within(call, parent)) parent = graph_.call(parent).parent;
    }
    GraphBuilder builder(graph_, position_, parent);
    if (replacement_.module) {
      path_ = graph_.unique_call_path(graph_.call(parent).path, replacement_.name);
      builder.add_tree(tree_like(*replacement_.module, graph_.value(branches_[0]->inputs[0]).spec),
                       path_);
    }
    std::vector<Tensor> inputs;
    for (ValueId id : branches_[0]->inputs) inputs.push_back(builder.tensor(id));
    std::vector<Tensor> outputs;
    {
      const InterpreterGuard guard(builder);
      outputs = replacement_.call(inputs);
    }
    added_ = builder.added();
    TENON_CHECK(outputs.size() == branches_.size(), ScheduleError,
                "{} returned {} tensors; needed {}", replacement_.name, outputs.size(),
                branches_.size());
    std::vector<ValueId> ids;
    for (const Tensor& output : outputs) ids.push_back(builder.value_of(output, "return"));
    return ids;
  }

  /// Every parameter that the replacement brought becomes one, or a concatenation, of the model's.
  void give_weights() {
    if (!replacement_.module) return;
    std::vector<ValueId> fresh;
    for (ValueId id : graph_.values()) {
      if (!known_.contains(id) && graph_.value(id).kind == ValueKind::parameter)
        fresh.push_back(id);
    }
    check_weight_names();
    for (std::size_t i = 0; i < fresh.size(); ++i) {
      const std::string name = graph_.value(fresh[i]).name.substr(path_.size() + 1);
      const auto given = options_.weights.find(name);
      const std::vector<ValueId> sources = given != options_.weights.end()
                                               ? named_sources(name, given->second)
                                               : derived_sources(name, fresh, i);
      check_sources(name, sources);
      ValueId value = sources[0];
      if (sources.size() > 1) {
        const NodeId joined =
            graph_.add_node(get_op("cat"), sources, AxisAttrs{0}, own_call(), position_);
        graph_.rename(joined, last_component(name));
        value = graph_.node(joined).outputs[0];
      }
      const TensorSpec& needed = graph_.value(fresh[i]).spec;
      TENON_CHECK(graph_.value(value).spec == needed, ScheduleError,
                  "parameter '{}' of {} is {}; its sources make {}", name, replacement_.name,
                  needed.to_string(), graph_.value(value).spec.to_string());
      graph_.replace_all_uses(fresh[i], value);
    }
  }

  CallId own_call() const {
    const auto& calls = graph_.calls();
    return std::find_if(calls.begin(), calls.end(),
                        [&](const ModuleCall& call) { return call.path == path_; })
        ->id;
  }

  void check_weight_names() const {
    for (const auto& [name, sources] : options_.weights) {
      const auto parameters = replacement_.module->named_parameters();
      const bool known = std::any_of(parameters.begin(), parameters.end(),
                                     [&, n = name](const auto& entry) { return entry.first == n; });
      TENON_CHECK(known, ScheduleError, "weights: {} has no parameter '{}'", replacement_.name,
                  name);
    }
  }

  std::vector<ValueId> named_sources(const std::string& name,
                                     const std::vector<std::string>& names) const {
    std::vector<ValueId> sources;
    for (const std::string& source : names) {
      ValueId found = kNone;
      for (ValueId id : known_) {
        const Value& value = graph_.value(id);
        if (value.kind == ValueKind::parameter &&
            (value.name == source || value.name.ends_with("." + source))) {
          TENON_CHECK(found == kNone, ScheduleError,
                      "weights: '{}' could be {} or {}; write the whole name", source,
                      graph_.value_name(found), graph_.value_name(id));
          found = id;
        }
      }
      TENON_CHECK(found != kNone, ScheduleError,
                  "weights: the model uses no parameter '{}' (a source of '{}')", source, name);
      sources.push_back(found);
    }
    TENON_CHECK(!sources.empty(), ScheduleError, "weights: '{}' has an empty list of sources",
                name);
    return sources;
  }

  /// The i-th parameter of a replacement with as many parameters as every match has, and the same
  /// last names, is the concatenation of the matches' i-th ones.
  std::vector<ValueId> derived_sources(const std::string& name, const std::vector<ValueId>& fresh,
                                       std::size_t i) const {
    std::vector<ValueId> sources;
    for (const Subgraph* branch : branches_) {
      const std::vector<ValueId> own = parameters_of(graph_, *branch);
      TENON_CHECK(own.size() == fresh.size() &&
                      last_component(graph_.value(own[i]).name) == last_component(name),
                  ScheduleError,
                  "parameter '{}' of {} has no source: {} has {} parameters{}, the replacement {}; "
                  "name its sources in ReplaceOptions::weights",
                  name, replacement_.name, match_name(graph_, *branch), own.size(),
                  own.size() == fresh.size() ? " of other names" : "", fresh.size());
      sources.push_back(own[i]);
    }
    return sources;
  }

  void check_sources(const std::string& name, const std::vector<ValueId>& sources) const {
    const auto inside = [&](const Use& use) {
      return std::any_of(branches_.begin(), branches_.end(), [&](const Subgraph* branch) {
        return std::find(branch->nodes.begin(), branch->nodes.end(), use.node) !=
               branch->nodes.end();
      });
    };
    const auto tied = [&](ValueId id) {
      const auto& uses = graph_.value(id).uses;
      return std::any_of(uses.begin(), uses.end(), [&](const Use& use) {
        return !inside(use) && known_.contains(graph_.node(use.node).outputs.at(0));
      });
    };
    const Value& first = graph_.value(sources[0]);
    for (std::size_t i = 1; i < sources.size(); ++i) {
      const Value& other = graph_.value(sources[i]);
      TENON_CHECK(std::find(sources.begin(), sources.begin() + static_cast<std::ptrdiff_t>(i),
                            sources[i]) == sources.begin() + static_cast<std::ptrdiff_t>(i),
                  ScheduleError, "'{}' of {} would hold '{}' twice: the matches share that weight",
                  name, replacement_.name, other.name);
      TENON_CHECK(first.tensor.impl()->requires_grad == other.tensor.impl()->requires_grad,
                  ScheduleError, "'{}' and '{}' cannot be joined: one is frozen, the other is not",
                  first.name, other.name);
      TENON_CHECK(tied(sources[0]) == tied(sources[i]), ScheduleError,
                  "'{}' and '{}' cannot be joined: one is tied to another place of the model, the "
                  "other is not",
                  first.name, other.name);
    }
  }

  /// The i-th mask of the replacement is the i-th mask of what it replaces.
  void carry_sites(const std::vector<AttrValue>& old_sites) {
    std::vector<NodeId> drawing;
    for (NodeId id : added_) {
      if (!active_sites(graph_, {id}).empty()) drawing.push_back(id);
    }
    TENON_CHECK(drawing.size() == old_sites.size(), ScheduleError,
                "the matched nodes drop at {} place{} in training, {} at {}; the results would "
                "differ",
                old_sites.size(), old_sites.size() == 1 ? "" : "s", replacement_.name,
                drawing.size());
    for (std::size_t i = 0; i < drawing.size(); ++i) {
      graph_.set_attribute(drawing[i], graph_.node(drawing[i]).attrs.find("site"), old_sites[i]);
    }
  }

  Graph& graph_;
  const Replacement& replacement_;
  const ReplaceOptions& options_;
  Branches branches_;
  std::size_t position_;
  std::string path_;
  std::set<ValueId> known_;
  std::vector<NodeId> added_;
};

/// How many tensors the replacement returns, found by recording it into a draft.
std::size_t count_outputs(const Graph& graph, const Replacement& replacement,
                          const Subgraph& match) {
  Graph draft = graph;
  GraphBuilder builder(draft, detail::position_after(draft, match.inputs),
                       detail::common_call(draft, match));
  if (replacement.module) {
    builder.add_tree(tree_like(*replacement.module, graph.value(match.inputs[0]).spec),
                     replacement.name);
  }
  std::vector<Tensor> inputs;
  for (ValueId id : match.inputs) inputs.push_back(builder.tensor(id));
  const InterpreterGuard guard(builder);
  return replacement.call(inputs).size();
}

/// Replaces the branches, and lets later matches read what now stands for their results.
void rewrite(Graph& graph, const Replacement& replacement, const ReplaceOptions& options,
             const Branches& branches, std::vector<Subgraph>& matches) {
  const std::vector<ValueId> results = Rewrite(graph, replacement, options, branches).run();
  for (Subgraph& match : matches) {
    for (std::size_t i = 0; i < branches.size(); ++i) {
      std::replace(match.inputs.begin(), match.inputs.end(), branches[i]->outputs[0], results[i]);
    }
  }
}

[[noreturn]] void refuse_groups(const Graph& graph, const std::vector<Branches>& groups,
                                std::size_t outputs, const std::string& name) {
  std::string detail_text;
  for (const Branches& group : groups) {
    for (const Subgraph* match : group) {
      detail_text += fmt::format("{}{} reads {}", detail_text.empty() ? "" : "; ",
                                 match_name(graph, *match), input_names(graph, *match));
    }
  }
  if (groups.size() > 1) {
    detail::fail<ScheduleError>(
        "{} returns {} tensors for {} matches that read the same input, but these do not share "
        "their input: {}",
        name, outputs, outputs, detail_text);
  }
  detail::fail<ScheduleError>(
      "{} returns {} tensors; needed 1 (each match on its own) or {} (all matches at once)", name,
      outputs, groups[0].size());
}

}  // namespace

void replace_matches(Graph& graph, const Replacement& replacement, const Matches& matches,
                     const ReplaceOptions& options) {
  TENON_CHECK(!matches.empty(), ScheduleError, "the match is empty: {}", matches.explain());
  for (const Subgraph& match : matches) {
    detail::check_current(graph, match);
    TENON_CHECK(static_cast<std::size_t>(replacement.tensor_parameters) == match.inputs.size(),
                ScheduleError, "{} takes {} tensors; the pattern has {} parameters",
                replacement.name, replacement.tensor_parameters, match.inputs.size());
  }
  const std::size_t outputs = count_outputs(graph, replacement, matches[0]);
  std::vector<Subgraph> current(matches.begin(), matches.end());
  if (outputs == 1) {
    for (const Subgraph& match : current) rewrite(graph, replacement, options, {&match}, current);
    return;
  }
  const std::vector<Branches> groups = group_by_inputs(current);
  for (const Branches& group : groups) {
    if (group.size() != outputs) refuse_groups(graph, groups, outputs, replacement.name);
  }
  for (const Branches& group : groups) rewrite(graph, replacement, options, group, current);
}

}  // namespace tenon
