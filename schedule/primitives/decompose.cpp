#include "schedule/primitives/decompose.h"

#include "graph/tracer.h"
#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

/// True when the node was split.
bool decompose_node(Graph& graph, NodeId id) {
  const Node node = graph.node(id);
  if (node.op->decompose == nullptr) return false;
  GraphBuilder builder(graph, graph.position(id), node.call);
  std::vector<Tensor> inputs;
  for (ValueId input : node.inputs) {
    inputs.push_back(builder.tensor(input));
  }
  std::vector<Tensor> outputs;
  {
    const InterpreterGuard guard(builder);
    outputs = node.op->decompose(inputs, node.attrs);
  }
  if (builder.added().size() == 1 && graph.node(builder.added()[0]).op == node.op) return false;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    graph.replace_all_uses(node.outputs[i], builder.value_of(outputs[i], node.op->name));
  }
  for (NodeId added : builder.added()) graph.set_region(added, node.region);
  graph.erase_node(id);
  graph.rename_apart(builder.added());
  return true;
}

void mark_decomposed(Graph& graph, CallId call) {
  if (graph.call(call).type.starts_with("Decomposed")) return;
  graph.mutable_call(call).type = "Decomposed" + graph.call(call).type;
}

}  // namespace

void decompose_module(Graph& graph, const std::string& path) {
  bool found = false;
  std::string ops;
  for (const NodeId id : std::vector<NodeId>(graph.order())) {
    const Node& node = graph.node(id);
    const CallId call = node.call;
    if (graph.call(call).path != path) continue;
    TENON_CHECK(!graph.call(call).has_hooks, ScheduleError, "module '{}' has a hook", path);
    ops += (ops.empty() ? "" : ", ") + node.op->name;
    if (!decompose_node(graph, id)) continue;
    found = true;
    mark_decomposed(graph, call);
  }
  TENON_CHECK(found, ScheduleError, "'{}' has nothing to decompose: its own ops are {}", path,
              ops.empty() ? "none" : ops + " without a bias or of one kernel each");
}

void decompose_matches(Graph& graph, const Matches& matches) {
  detail::check_current(graph, matches);
  detail::check_disjoint(graph, matches);
  for (const Subgraph& match : matches) {
    for (NodeId id : match.nodes) {
      const std::string name = graph.full_name(id);
      const CallId call = graph.node(id).call;
      TENON_CHECK(!graph.call(call).has_hooks, ScheduleError, "module '{}' has a hook",
                  graph.call(call).path);
      TENON_CHECK(decompose_node(graph, id), ScheduleError,
                  "{} cannot be decomposed: it has no bias, or is of one kernel", name);
      if (graph.call(call).leaf) mark_decomposed(graph, call);
    }
  }
}

}  // namespace tenon
