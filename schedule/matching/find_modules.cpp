// find by name, by class and by predicate: what to look for is told apart by one look at each module
// call or node.
#include <algorithm>
#include <unordered_set>

#include "schedule/matcher.h"
#include "schedule/matching/module_selector.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

void add_node(const Graph& graph, NodeId id, const std::string& path, Subgraph& subgraph) {
  subgraph.nodes.push_back(id);
  subgraph.operands.push_back(graph.node(id).inputs);
  subgraph.ops[id] = {graph.node(id).op, graph.node(id).attrs};
  subgraph.names.emplace_back(detail::relative_path(graph.call(graph.visible_call(id)).path, path),
                              graph.node(id).name);
}

Matches find_selected(const Graph& graph, detail::ModuleSelector selector,
                      const std::string& path) {
  std::vector<Subgraph> found;
  std::unordered_set<CallId> selected;
  const auto lies_in_another = [&](CallId id) {
    for (CallId c = graph.call(id).parent; c != kNone; c = graph.call(c).parent) {
      if (selected.contains(c)) return true;
    }
    return false;
  };
  for (const ModuleCall& call : graph.calls()) {
    if (call.path == path || !is_below(call.path, path) || call.outputs.empty()) continue;
    if (!selector.selects(call, path) || graph.nodes_within(call.id).empty()) continue;
    selected.insert(call.id);
  }
  for (const ModuleCall& call : graph.calls()) {
    if (!selected.contains(call.id) || lies_in_another(call.id)) continue;
    Subgraph& subgraph = found.emplace_back();
    for (NodeId id : graph.nodes_within(call.id)) add_node(graph, id, path, subgraph);
    subgraph.inputs = call.inputs;
    subgraph.outputs = call.outputs;
  }
  // Calls that primitives added come last among the calls, wherever they stand.
  std::stable_sort(found.begin(), found.end(), [&](const Subgraph& a, const Subgraph& b) {
    return graph.position(a.nodes[0]) < graph.position(b.nodes[0]);
  });
  return {std::move(found), {}, static_cast<std::int64_t>(graph.calls().size())};
}

}  // namespace

Matches find_modules(const Graph& graph, const std::string& regex, const std::string& path) {
  return find_selected(graph, detail::ModuleSelector::by_name("find", regex), path);
}

Matches find_modules_of_type(const Graph& graph, const std::string& type, const std::string& path) {
  return find_selected(graph, detail::ModuleSelector::by_type(type), path);
}

Matches find_nodes(const Graph& graph, const std::function<bool(const Node&)>& predicate,
                   const std::string& path) {
  TENON_CHECK(predicate != nullptr, ScheduleError, "find: the predicate is empty");
  std::vector<Subgraph> found;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (!is_below(graph.call(graph.visible_call(id)).path, path) || !predicate(node)) continue;
    Subgraph& subgraph = found.emplace_back();
    add_node(graph, id, path, subgraph);
    for (ValueId input : node.inputs) {
      if (input != kNone) subgraph.inputs.push_back(input);
    }
    subgraph.outputs = node.outputs;
  }
  return {std::move(found), {}, static_cast<std::int64_t>(graph.order().size())};
}

}  // namespace tenon
