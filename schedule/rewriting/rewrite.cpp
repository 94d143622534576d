#include "schedule/rewriting/rewrite.h"

#include <algorithm>

#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

std::vector<NodeId> matched_nodes(const Branches& branches) {
  std::vector<NodeId> nodes;
  for (const Subgraph* branch : branches) {
    nodes.insert(nodes.end(), branch->nodes.begin(), branch->nodes.end());
  }
  return nodes;
}

std::vector<ValueId> results_of(const Branches& branches) {
  std::vector<ValueId> results;
  for (const Subgraph* branch : branches) {
    results.insert(results.end(), branch->outputs.begin(), branch->outputs.end());
  }
  return results;
}

/// The innermost call that all branches are seen in.
CallId enclosing_call(const Graph& graph, const Branches& branches) {
  CallId parent = common_call(graph, *branches[0]);
  for (const Subgraph* branch : branches) {
    const CallId call = common_call(graph, *branch);
    while (!graph.is_within(call, parent)) parent = graph.call(parent).parent;
  }
  return parent;
}

/// What an earlier branch was replaced by may read less, which leaves nodes dead.
void check_still_there(const Graph& graph, const Branches& branches) {
  for (const Subgraph* branch : branches) {
    for (std::size_t i = 0; i < branch->nodes.size(); ++i) {
      TENON_CHECK(graph.has_node(branch->nodes[i]), ScheduleError,
                  "{} is gone: nothing reads it once another match is replaced; replace it first",
                  branch->names[i].second);
    }
    for (ValueId id : branch->inputs) {
      TENON_CHECK(id == kNone || graph.has_value(id), ScheduleError,
                  "an input of {} is gone: nothing reads it once another match is replaced",
                  branch->names[0].second);
    }
  }
}

/// What matched nodes that draw do: masks drop, random tensors draw.
const char* verb_of(const Graph& graph, const std::vector<NodeId>& matched) {
  const bool tensors = std::any_of(matched.begin(), matched.end(), [&](NodeId id) {
    return draws_mask(graph.node(id)) && graph.node(id).op->operands.empty();
  });
  return tensors ? "draw" : "drop";
}

/// The i-th mask, or random tensor, of the replacement is the i-th of what it replaces.
void carry_sites(Graph& graph, const std::vector<AttrValue>& old_sites,
                 const std::vector<NodeId>& added, const char* verb,
                 const std::string& replacement) {
  std::vector<NodeId> drawing;
  for (NodeId id : added) {
    if (!active_sites(graph, {id}).empty()) drawing.push_back(id);
  }
  TENON_CHECK(drawing.size() == old_sites.size(), ScheduleError,
              "the matched nodes {} at {} place{} in training, {} at {}; the results would "
              "differ",
              verb, old_sites.size(), old_sites.size() == 1 ? "" : "s", replacement,
              drawing.size());
  for (std::size_t i = 0; i < drawing.size(); ++i) {
    graph.set_attribute(drawing[i], graph.node(drawing[i]).attrs.find("site"), old_sites[i]);
  }
}

}  // namespace

ModuleTree tree_like(const Replacement& replacement, const Graph& graph, const Subgraph& match) {
  if (!replacement.module) return {};
  ModuleTree tree = module_tree(*replacement.module);
  if (match.inputs.empty()) return tree;
  const TensorSpec& spec = graph.value(match.inputs[0]).spec;
  for (ModuleTree::State& state : tree.states) {
    const bool requires_grad = state.tensor.requires_grad();
    state.held = state.tensor;
    if (is_floating(state.held.dtype()) && is_floating(spec.dtype)) {
      state.held = state.held.to(spec.dtype);
    }
    state.held = state.held.to(spec.device);
    // A converted copy is a leaf of its own.
    if (!state.held.is_same(state.tensor)) state.held = state.held.detach();
    if (requires_grad) state.held.requires_grad_();
  }
  return tree;
}

std::vector<ValueId> Rewrite::run() {
  const std::vector<NodeId> matched = matched_nodes(branches);
  check_still_there(graph, branches);
  const std::int32_t region = common_region(graph, matched);
  const std::vector<AttrValue> old_sites = active_sites(graph, matched);
  const char* verb = verb_of(graph, matched);
  const auto known = replacement.module ? value_set(graph) : std::unordered_set<ValueId>();
  const std::vector<ValueId>& inputs = branches[0]->inputs;
  const std::size_t position = position_after(graph, inputs);
  const CallId parent =
      replaced_call != kNone ? graph.call(replaced_call).parent : enclosing_call(graph, branches);
  GraphBuilder builder(graph, position, parent == kNone ? 0 : parent);
  builder.act_as(replaced_call != kNone ? replaced_call : std::max(parent, 0));
  const auto own_call = static_cast<CallId>(graph.calls().size());
  std::string state_prefix;
  if (replacement.module) {
    state_prefix =
        graph.unique_call_path(parent == kNone ? "" : graph.call(parent).path, replacement.name);
    const std::string path = replaced_call != kNone ? graph.call(replaced_call).path : state_prefix;
    builder.add_tree({tree.modules, {}}, path);
    builder.add_tree({{}, tree.states}, state_prefix);
  }
  std::vector<Tensor> operands;
  for (ValueId id : inputs) operands.push_back(builder.tensor(id));
  std::vector<Tensor> outputs;
  {
    const GradModeGuard grad_mode(true);
    const InterpreterGuard guard(builder);
    outputs = replacement.call(operands);
  }
  const std::vector<ValueId> old = results_of(branches);
  TENON_CHECK(outputs.size() == old.size(), ScheduleError, "{} returned {} tensors; needed {}",
              replacement.name, outputs.size(), old.size());
  std::vector<ValueId> results;
  for (const Tensor& output : outputs) {
    TENON_CHECK(output.defined(), ScheduleError, "result {} of {} is an undefined tensor",
                results.size(), replacement.name);
    results.push_back(builder.value_of(output, "return"));
  }
  const std::size_t first_mapped = graph.replaced_values().size();
  if (replacement.module) {
    map_weights(graph,
                {replacement, weights, branches, known, state_prefix, replaced_call != kNone,
                 replaced_call != kNone ? graph.call(replaced_call).path : "", own_call, position});
  }
  // A parameter may be a result itself.
  const auto& mapped = graph.replaced_values();
  for (std::size_t i = first_mapped; i < mapped.size(); ++i) {
    std::replace(results.begin(), results.end(), mapped[i].first, mapped[i].second);
  }
  carry_sites(graph, old_sites, builder.added(), verb, replacement.name);
  for (NodeId id : builder.added()) graph.set_region(id, region);
  for (std::size_t i = 0; i < old.size(); ++i) {
    check_same_spec(graph, old[i], results[i], replacement.name);
    graph.replace_all_uses(old[i], results[i]);
  }
  graph.eliminate_dead_code();
  return results;
}

}  // namespace tenon::detail
