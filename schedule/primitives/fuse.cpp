#include "schedule/primitives/fuse.h"

#include <algorithm>
#include <set>

#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

struct FusedMatch {
  const Op* op;
  Attrs attrs;  // with wildcards
  Subgraph match;
};

/// Every fused op that decomposes into nodes of `match`, and how it is bound to them.
std::vector<FusedMatch> fused_ops_within(const Graph& graph, const Subgraph& match) {
  const std::string& path = graph.call(graph.visible_call(match.nodes[0])).path;
  const std::set<NodeId> nodes(match.nodes.begin(), match.nodes.end());
  std::vector<FusedMatch> within;
  for (const Op* op : all_ops()) {
    if (op->decompose == nullptr || op->pattern_attrs == nullptr) continue;
    for (const Attrs& attrs : op->pattern_attrs()) {
      for (const Subgraph& found :
           find_matches(graph, pattern_of_decomposition(*op, attrs), path)) {
        const bool inside = std::all_of(found.nodes.begin(), found.nodes.end(),
                                        [&](NodeId id) { return nodes.contains(id); });
        if (inside) within.push_back({op, attrs, found});
      }
    }
  }
  return within;
}

/// The first node that no fused op covers even in part, which is where the composition has no kernel.
std::string node_without_kernel(const Graph& graph, const Subgraph& match,
                                const std::vector<FusedMatch>& within) {
  for (NodeId id : match.nodes) {
    const bool covered = std::any_of(within.begin(), within.end(), [&](const FusedMatch& fused) {
      const auto& nodes = fused.match.nodes;
      return std::find(nodes.begin(), nodes.end(), id) != nodes.end();
    });
    if (!covered) {
      return fmt::format("{} ({}) is in no fused kernel", graph.full_name(id),
                         graph.node(id).op->name);
    }
  }
  std::string parts;
  for (const FusedMatch& fused : within) parts += (parts.empty() ? "" : ", ") + fused.op->name;
  return "parts of it are " + parts;
}

/// The wildcard attributes of the op with every capture put in.
Attrs captured_attrs(const FusedMatch& fused) {
  Attrs attrs = fused.attrs;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    const WildcardInfo wildcard = wildcard_info(attrs.value(i));
    if (!wildcard.is_wildcard) continue;
    const auto capture = fused.match.captures.find(wildcard.capture);
    TENON_INTERNAL(capture != fused.match.captures.end(),
                   "[{}] the decomposition does not use attribute '{}'", fused.op->name,
                   attrs.name(i));
    attrs = attrs.with(i, capture->second);
  }
  return attrs;
}

/// Whether `outputs` begin with the match's first result and hold the others.
bool makes_all(const std::vector<ValueId>& outputs, const Subgraph& match) {
  return outputs.at(0) == match.outputs.at(0) &&
         std::all_of(match.outputs.begin(), match.outputs.end(), [&](ValueId id) {
           return std::find(outputs.begin(), outputs.end(), id) != outputs.end();
         });
}

void fuse_one(Graph& graph, const Subgraph& match, const std::string& name) {
  std::string nodes;
  for (NodeId id : match.nodes) nodes += (nodes.empty() ? "" : ", ") + graph.full_name(id);
  TENON_CHECK(match.nodes.size() > 1, ScheduleError, "nothing to fuse: the match is {} alone",
              nodes);
  const std::vector<FusedMatch> within = fused_ops_within(graph, match);
  const auto fused = std::find_if(within.begin(), within.end(), [&](const FusedMatch& candidate) {
    return candidate.match.nodes == match.nodes && makes_all(candidate.match.outputs, match);
  });
  TENON_CHECK(fused != within.end(), ScheduleError,
              "no fused op is registered for the composition of {}: {}", nodes,
              node_without_kernel(graph, match, within));

  const std::int32_t region = detail::common_region(graph, match.nodes);
  const CallId parent = detail::common_call(graph, match);
  ModuleCall call;
  call.parent = parent;
  call.path = graph.unique_call_path(graph.call(parent).path, name);
  call.type = fused->op->name;
  call.leaf = true;
  const Attrs attrs = captured_attrs(*fused);
  call.repr = attrs.to_string();
  call.inputs = fused->match.inputs;
  const CallId id = graph.add_call(std::move(call));
  const NodeId node = graph.add_node(*fused->op, fused->match.inputs, attrs, id,
                                     detail::position_after(graph, fused->match.inputs));
  graph.rename(node, graph.call(id).name());
  graph.set_region(node, region);
  const std::vector<ValueId> outputs = graph.node(node).outputs;
  graph.mutable_call(id).outputs = outputs;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const ValueId old = fused->match.outputs.at(i);
    detail::check_same_spec(graph, old, outputs[i], fused->op->name);
    graph.replace_all_uses(old, outputs[i]);
  }
  graph.eliminate_dead_code();
}

}  // namespace

void fuse_matches(Graph& graph, const Matches& matches, const std::string& name) {
  detail::check_replaceable(graph, matches);
  for (const Subgraph& match : matches) fuse_one(graph, match, name);
}

}  // namespace tenon
