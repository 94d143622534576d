#include "schedule/primitives/fuse.h"

#include <algorithm>

#include "schedule/detail/state.h"
#include "tensor/detail/check.h"

namespace tenon {
namespace {

struct FusedMatch {
  const Op* op;
  Attrs attrs;  // with wildcards
  Subgraph match;
};

/// The fused op that decomposes into exactly the nodes of `match`, and how it is bound to them.
std::optional<FusedMatch> find_fused_op(const Graph& graph, const Subgraph& match) {
  const std::string& path = graph.call(graph.visible_call(match.nodes[0])).path;
  for (const Op* op : all_ops()) {
    if (op->decompose == nullptr || op->pattern_attrs == nullptr) continue;
    for (const Attrs& attrs : op->pattern_attrs()) {
      for (const Subgraph& found : find_matches(graph, pattern_of_decomposition(*op, attrs), path)) {
        if (found.nodes == match.nodes && found.outputs == match.outputs) {
          return FusedMatch{op, attrs, found};
        }
      }
    }
  }
  return std::nullopt;
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

void fuse_one(Graph& graph, const Subgraph& match, const std::string& name) {
  std::string nodes;
  for (NodeId id : match.nodes) nodes += (nodes.empty() ? "" : ", ") + graph.full_name(id);
  TENON_CHECK(match.nodes.size() > 1, ScheduleError, "nothing to fuse: the match is {} alone",
              nodes);
  const auto fused = find_fused_op(graph, match);
  TENON_CHECK(fused.has_value(), ScheduleError,
              "no fused op is registered for the composition of {}", nodes);

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
  const ValueId output = graph.node(node).outputs.at(0);
  graph.mutable_call(id).outputs = {output};
  detail::check_same_spec(graph, match.outputs[0], output, fused->op->name);
  graph.replace_all_uses(match.outputs[0], output);
  graph.eliminate_dead_code();
}

}  // namespace

void fuse_matches(Graph& graph, const Matches& matches, const std::string& name) {
  TENON_CHECK(!matches.empty(), ScheduleError, "the match is empty: {}", matches.explain());
  for (const Subgraph& match : matches) detail::check_current(graph, match);
  for (const Subgraph& match : matches) fuse_one(graph, match, name);
}

}  // namespace tenon
