#include "graph/diff.h"

namespace tenon {
namespace {

bool same(const Node& a, const Node& b) {
  if (&a == &b) return true;  // versions share what they have in common
  return a.op == b.op && a.inputs == b.inputs && a.attrs == b.attrs && a.kernel == b.kernel &&
         a.region == b.region && a.recomputed == b.recomputed;
}

}  // namespace

GraphDiff diff(const Graph& before, const Graph& after) {
  GraphDiff result;
  for (NodeId id : before.order()) {
    if (!after.has_node(id)) result.removed.push_back(id);
  }
  for (NodeId id : after.order()) {
    if (!before.has_node(id)) {
      result.added.push_back(id);
    } else if (!same(before.node(id), after.node(id))) {
      result.changed.push_back(id);
    }
  }
  return result;
}

}  // namespace tenon
