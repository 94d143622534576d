#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "graph/verify.h"
#include "graph/verify_rewrite.h"
#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

bool is_as_found(const Graph& graph, const Subgraph& match, std::size_t i) {
  if (!graph.has_node(match.nodes[i])) return false;
  const Node& node = graph.node(match.nodes[i]);
  if (node.inputs != match.operands[i]) return false;
  const auto op = match.ops.find(node.id);
  return op == match.ops.end() || (op->second.first == node.op && op->second.second == node.attrs);
}

/// Those are fresh: a weight map gives every other parameter of a replacement the model's own.
std::vector<std::string> new_parameters(const Graph& graph, const Graph& draft) {
  std::vector<std::string> names;
  for (ValueId id : draft.values()) {
    const Value& value = draft.value(id);
    if (value.kind == ValueKind::parameter && !graph.has_value(id)) names.push_back(value.name);
  }
  return names;
}

void check_replaceable(const Graph& graph, const Subgraph& match) {
  check_results(graph, match);
  check_match(graph, match);
  const std::unordered_set<NodeId> inside(match.nodes.begin(), match.nodes.end());
  for (NodeId id : match.nodes) {
    for (CallId c = graph.node(id).call; c != kNone; c = graph.call(c).parent) {
      if (!graph.call(c).has_hooks) continue;
      const std::vector<NodeId> nodes = graph.nodes_within(c);
      const bool whole = std::all_of(nodes.begin(), nodes.end(),
                                     [&](NodeId node) { return inside.contains(node); });
      TENON_CHECK(!whole, ScheduleError,
                  "module '{}' has a hook, which would be lost; replace the module itself instead "
                  "of a match",
                  graph.call(c).path);
    }
  }
}

}  // namespace

void ScheduleState::transact(AppliedPrimitive primitive,
                             const std::function<void(Graph&)>& rewrite) {
  const ExclusiveUse::Scope use(in_use, fmt::format("[{}] the schedule", primitive.primitive));
  std::vector<Dim> symbols;
  for (ValueId id : graph.inputs()) {
    const Shape& shape = graph.value(id).spec.shape;
    symbols.insert(symbols.end(), shape.begin(), shape.end());
  }
  GuardTransaction guards(graph.guards(), symbols);
  const std::string where = primitive.path.empty()
                                ? primitive.primitive
                                : fmt::format("{} on '{}'", primitive.primitive, primitive.path);
  Graph draft = graph;
  try {
    rewrite(draft);
    draft.eliminate_dead_code();
    const auto recorded = guards.recorded();
    TENON_CHECK(recorded.empty(), ScheduleError,
                "the rewrite holds for some sizes only: it needs {}", recorded[0].to_string());
    tenon::verify(draft, graph);
    verify_rewrite(graph, draft, new_parameters(graph, draft));
  } catch (const InternalError&) {
    throw;
  } catch (const Error& error) {
    throw ScheduleError(fmt::format("{} refused: {}", where, error.what()));
  }
  history.push_back(std::move(graph));
  graph = std::move(draft);
  guards.commit();
  applied.push_back(std::move(primitive));
}

ModuleTree module_tree(nn::Module& root) {
  ModuleTree tree;
  for (const auto& [path, module] : root.named_modules()) {
    const auto hooks = module->hooks();
    tree.modules.emplace(module, ModuleTree::Module{path, module->type_name(), module->extra_repr(),
                                                    module->is_leaf(), hooks, hooks->numbers(),
                                                    module->mode_cell()});
  }
  for (const auto& [name, tensor] : root.named_parameters()) {
    tree.states.push_back({name, ValueKind::parameter, tensor});
  }
  for (const auto& [name, tensor] : root.named_buffers()) {
    tree.states.push_back({name, ValueKind::buffer, tensor});
  }
  return tree;
}

ModuleTree state_tree(const Schedule& schedule) {
  ModuleTree tree = module_tree(schedule.model());
  for (const auto& [name, tensor] : schedule.added_parameters()) {
    tree.states.push_back({name, ValueKind::parameter, tensor});
  }
  return tree;
}

std::vector<CallId> calls_below(const Graph& graph, const std::string& path) {
  std::vector<CallId> calls;
  for (const ModuleCall& call : graph.calls()) {
    if (is_below(call.path, path)) calls.push_back(call.id);
  }
  return calls;
}

std::vector<CallId> live_calls(const Graph& graph, const std::string& path) {
  std::vector<CallId> calls;
  for (const ModuleCall& call : graph.calls()) {
    if (call.path == path && !graph.nodes_within(call.id).empty()) calls.push_back(call.id);
  }
  return calls;
}

Subgraph subgraph_of_call(const Graph& graph, CallId id) {
  const ModuleCall& call = graph.call(id);
  Subgraph subgraph;
  subgraph.nodes = graph.nodes_within(id);
  subgraph.inputs = call.inputs;
  subgraph.outputs = call.outputs;
  for (ValueId output : call.outputs) {
    TENON_CHECK(output != kNone, ScheduleError, "module '{}' returns an undefined tensor",
                call.path);
    const NodeId producer = graph.value(output).producer;
    TENON_CHECK(producer != kNone && graph.is_within(graph.node(producer).call, id), ScheduleError,
                "module '{}' returns {}, which it did not make", call.path,
                graph.value_name(output));
  }
  for (NodeId node : subgraph.nodes) {
    subgraph.operands.push_back(graph.node(node).inputs);
    subgraph.ops[node] = {graph.node(node).op, graph.node(node).attrs};
    subgraph.names.emplace_back(graph.call(graph.visible_call(node)).path, graph.node(node).name);
  }
  return subgraph;
}

std::string hooked_module_below(const Graph& graph, const std::string& path) {
  for (const ModuleCall& call : graph.calls()) {
    if (call.has_hooks && call.path != path && is_below(call.path, path) &&
        !graph.nodes_within(call.id).empty()) {
      return call.path;
    }
  }
  return "";
}

std::int32_t common_region(const Graph& graph, const std::vector<NodeId>& nodes) {
  const std::int32_t region = graph.node(nodes.at(0)).region;
  for (NodeId id : nodes) {
    TENON_CHECK(
        graph.node(id).region == region, ScheduleError,
        "{} and {} are not recomputed together (checkpoint); rewrite first, then checkpoint",
        graph.full_name(nodes[0]), graph.full_name(id));
  }
  return region;
}

void check_current(const Graph& graph, const Matches& matches) {
  TENON_CHECK(!matches.empty(), ScheduleError, "the match is empty: {}", matches.explain());
  for (const Subgraph& match : matches) {
    const std::size_t count = match.nodes.size();
    TENON_CHECK(count > 0, ScheduleError, "the match has no nodes");
    TENON_CHECK(match.operands.size() == count && match.names.size() == count, ScheduleError,
                "the match lists {} nodes, {} names and operands of {}; take it as find() gives it",
                count, match.names.size(), match.operands.size());
    for (std::size_t i = 0; i < count; ++i) {
      TENON_CHECK(is_as_found(graph, match, i), ScheduleError,
                  "the match is out of date: {} was changed since find(); find it again",
                  match.names[i].second);
    }
  }
}

void check_disjoint(const Graph& graph, const Matches& matches) {
  std::unordered_map<NodeId, const Subgraph*> taken;
  for (const Subgraph& match : matches) {
    for (NodeId id : match.nodes) {
      const auto [entry, is_new] = taken.emplace(id, &match);
      TENON_CHECK(is_new, ScheduleError, "{} is in {}", graph.full_name(id),
                  entry->second == &match ? "a match twice" : "two of the matches");
    }
  }
}

void check_results(const Graph& graph, const Subgraph& match) {
  TENON_CHECK(!match.outputs.empty(), ScheduleError, "the match of {} has no results",
              match.names[0].second);
  for (ValueId id : match.outputs) {
    TENON_CHECK(graph.has_value(id), ScheduleError,
                "the match of {} returns {}, which does not exist", match.names[0].second,
                id == kNone ? "an undefined tensor" : fmt::format("value {}", id));
  }
}

void check_replaceable(const Graph& graph, const Matches& matches) {
  check_current(graph, matches);
  check_disjoint(graph, matches);
  for (const Subgraph& match : matches) check_replaceable(graph, match);
}
CallId common_call(const Graph& graph, const Subgraph& match) {
  // The innermost call that encloses everything: for a module's own nodes, that of its parent.
  CallId common = graph.visible_call(match.nodes[0]);
  for (NodeId id : match.nodes) {
    while (!graph.is_within(graph.visible_call(id), common)) common = graph.call(common).parent;
  }
  return common;
}

std::size_t position_after(const Graph& graph, const std::vector<ValueId>& values) {
  std::size_t position = 0;
  for (ValueId id : values) {
    const NodeId producer = id == kNone ? kNone : graph.value(id).producer;
    if (producer != kNone) position = std::max(position, graph.position(producer) + 1);
  }
  return position;
}

std::vector<AttrValue> active_sites(const Graph& graph, const std::vector<NodeId>& nodes) {
  std::vector<NodeId> ordered = nodes;
  std::sort(ordered.begin(), ordered.end(),
            [&](NodeId a, NodeId b) { return graph.position(a) < graph.position(b); });
  std::vector<AttrValue> sites;
  for (NodeId id : ordered) {
    const Node& node = graph.node(id);
    if (!draws_mask(node)) continue;
    sites.push_back(node.attrs.value(node.attrs.find("site")));
  }
  return sites;
}

void check_same_spec(const Graph& graph, ValueId needed, ValueId found,
                     const std::string& replacement) {
  const TensorSpec& a = graph.value(needed).spec;
  const TensorSpec& b = graph.value(found).spec;
  bool same = a.dtype == b.dtype && a.device == b.device && a.shape.rank() == b.shape.rank();
  // Sizes that the trace's guards say are the same; one that is not known yet is a guard too many.
  for (int axis = 0; same && axis < a.shape.rank(); ++axis) {
    const std::size_t guards = graph.guards()->guards.size();
    same = a.shape[axis].same_as(b.shape[axis]) ||
           (unify(a.shape[axis], b.shape[axis]) && graph.guards()->guards.size() == guards);
  }
  TENON_CHECK(same, ScheduleError, "{} returns {} in place of {}; needed {}", replacement,
              b.to_string(), graph.value_name(needed), a.to_string());
}

}  // namespace tenon::detail
