#include "schedule/primitives/replace.h"

#include <algorithm>

#include "graph/tracer.h"
#include "nn/module.h"
#include "schedule/rewriting/rewrite.h"
#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

using detail::Branches;

std::string match_name(const Graph& graph, const Subgraph& match) {
  return graph.full_name(graph.value(match.outputs.at(0)).producer);
}

std::string input_names(const Graph& graph, const Subgraph& match) {
  std::string text;
  for (ValueId id : match.inputs) {
    text += (text.empty() ? "" : ", ") + (id == kNone ? "none" : graph.value_name(id));
  }
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

/// How many tensors the replacement returns, found by recording it into a draft.
std::size_t count_outputs(const Graph& graph, const Replacement& replacement,
                          const ModuleTree& tree, const Subgraph& match) {
  Graph draft = graph;
  const CallId call = detail::common_call(draft, match);
  GraphBuilder builder(draft, detail::position_after(draft, match.inputs), call);
  builder.act_as(call);
  builder.add_tree(tree, replacement.name);
  std::vector<Tensor> inputs;
  for (ValueId id : match.inputs) inputs.push_back(builder.tensor(id));
  const GradModeGuard grad_mode(true);
  const InterpreterGuard guard(builder);
  return replacement.call(inputs).size();
}

/// Replaces the branches, and lets later matches read what now stands for their results.
void rewrite(Graph& graph, const Replacement& replacement, const ModuleTree& tree,
             const ReplaceOptions& options, const Branches& branches,
             std::vector<Subgraph>& matches) {
  std::vector<ValueId> old;
  for (const Subgraph* branch : branches) {
    old.insert(old.end(), branch->outputs.begin(), branch->outputs.end());
  }
  const auto results = detail::Rewrite{graph, replacement, tree, options.weights, branches}.run();
  for (Subgraph& match : matches) {
    for (std::size_t i = 0; i < old.size(); ++i) {
      std::replace(match.inputs.begin(), match.inputs.end(), old[i], results[i]);
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
  const std::size_t each = groups[0][0]->outputs.size();
  if (groups.size() > 1) {
    detail::fail<ScheduleError>(
        "{} returns {} tensors for {} matches that read the same input, but these do not share "
        "their input: {}",
        name, outputs, outputs / each, detail_text);
  }
  detail::fail<ScheduleError>(
      "{} returns {} tensors; needed {} (each match on its own) or {} (all matches at once)", name,
      outputs, each, each * groups[0].size());
}

}  // namespace

void replace_matches(Graph& graph, const Replacement& replacement, const Matches& matches,
                     const ReplaceOptions& options) {
  detail::check_replaceable(graph, matches);
  for (const Subgraph& match : matches) {
    TENON_CHECK(static_cast<std::size_t>(replacement.tensor_parameters) == match.inputs.size(),
                ScheduleError, "{} takes {} tensors; the pattern has {} parameters",
                replacement.name, replacement.tensor_parameters, match.inputs.size());
  }
  const ModuleTree tree = detail::tree_like(replacement, graph, matches[0]);
  const std::size_t outputs = count_outputs(graph, replacement, tree, matches[0]);
  std::vector<Subgraph> current(matches.begin(), matches.end());
  if (outputs == current[0].outputs.size()) {
    for (const Subgraph& match : current)
      rewrite(graph, replacement, tree, options, {&match}, current);
    return;
  }
  const std::vector<Branches> groups = group_by_inputs(current);
  for (const Branches& group : groups) {
    if (group.size() * current[0].outputs.size() != outputs) {
      refuse_groups(graph, groups, outputs, replacement.name);
    }
  }
  for (const Branches& group : groups) rewrite(graph, replacement, tree, options, group, current);
}

void replace_module(Graph& graph, nn::Module& old, const std::string& path,
                    const Replacement& replacement, const ReplaceOptions& options) {
  const std::vector<CallId> calls = detail::live_calls(graph, path);
  TENON_CHECK(!calls.empty(), ScheduleError,
              "module '{}' is not called in the recorded forward pass", path);
  const std::string hooked = detail::hooked_module_below(graph, path);
  TENON_CHECK(hooked.empty(), ScheduleError,
              "module '{}' inside of '{}' has a hook, which would be lost", hooked, path);
  // The replaced module's own hooks run around the new one: they are recorded with it.
  Replacement with_hooks = replacement;
  with_hooks.call = [&](std::span<const Tensor> inputs) {
    return old.call_with_hooks({inputs.begin(), inputs.end()}, replacement.call);
  };
  const ModuleTree tree =
      detail::tree_like(replacement, graph, detail::subgraph_of_call(graph, calls[0]));
  for (const CallId id : calls) {
    const Subgraph call = detail::subgraph_of_call(graph, id);
    TENON_CHECK(static_cast<std::size_t>(replacement.tensor_parameters) == call.inputs.size(),
                ScheduleError, "{} takes {} tensors; module '{}' is called with {}",
                replacement.name, replacement.tensor_parameters, path, call.inputs.size());
    detail::Rewrite{graph, with_hooks, tree, options.weights, {&call}, id}.run();
  }
}

}  // namespace tenon
