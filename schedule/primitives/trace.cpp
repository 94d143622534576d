#include "schedule/primitives/trace.h"

#include <algorithm>

#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon {

void retrace_module(Graph& graph, const std::string& path, const TraceOptions& options) {
  bool called = false;
  const auto is_leaf = [&](const ModuleCall& call) {
    const auto& leaves = options.leaf_modules;
    return std::any_of(leaves.begin(), leaves.end(), [&](const std::string& leaf) {
      return call.type == leaf || call.path == leaf ||
             call.path == (path.empty() ? leaf : path + "." + leaf);
    });
  };
  std::vector<std::string> unknown = options.leaf_modules;
  for (CallId id : detail::calls_below(graph, path)) {
    ModuleCall& call = graph.mutable_call(id);
    if (call.path == path) {
      called = true;
      call.flattened = options.flatten;
      continue;
    }
    call.closed = options.flatten && is_leaf(call);
    std::erase_if(unknown, [&](const std::string& leaf) {
      return call.type == leaf || call.path == leaf || call.path.ends_with("." + leaf);
    });
  }
  TENON_CHECK(called, ScheduleError, "module '{}' is not called in the recorded forward pass",
              path);
  TENON_CHECK(unknown.empty(), ScheduleError, "leaf_modules: no module below '{}' is called '{}'",
              path, unknown.empty() ? "" : unknown[0]);
  std::vector<NodeId> below;
  for (NodeId id : graph.order()) {
    if (is_below(graph.call(graph.node(id).call).path, path)) below.push_back(id);
  }
  graph.rename_apart(below);
}

}  // namespace tenon
