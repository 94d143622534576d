#include "schedule/primitives/checkpoint.h"

#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

void mark_region(Graph& graph, const std::vector<NodeId>& nodes, bool keep_results) {
  const std::int32_t region = graph.unused_region();
  if (!keep_results) graph.discard_results(region);
  for (NodeId id : nodes) {
    TENON_CHECK(graph.node(id).region == kNone, ScheduleError,
                "{} is recomputed already: checkpoints do not nest or overlap",
                graph.full_name(id));
    if (!graph.node(id).op->has(Trait::effect)) graph.set_region(id, region);
  }
}

}  // namespace

void checkpoint_module(Graph& graph, const std::string& path, bool keep_results) {
  const std::vector<CallId> calls = detail::live_calls(graph, path);
  TENON_CHECK(!calls.empty(), ScheduleError,
              "module '{}' is not called in the recorded forward pass", path);
  for (CallId id : calls) mark_region(graph, graph.nodes_within(id), keep_results);
}

void checkpoint_matches(Graph& graph, const Matches& matches, bool keep_results) {
  detail::check_current(graph, matches);
  detail::check_disjoint(graph, matches);
  for (const Subgraph& match : matches) mark_region(graph, match.nodes, keep_results);
}

}  // namespace tenon
