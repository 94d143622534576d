// What stands between the nodes of a match: a node outside that depends on one of them and that another
// of them depends on, so that they cannot become one. A match with one result has none: its result
// would depend on itself.
#pragma once

#include <optional>
#include <span>

#include "graph/graph.h"

namespace tenon::detail {

struct Between {
  NodeId node = kNone;
  ValueId reads = kNone;  // the value of the match that it reads
};

std::optional<Between> find_between(const Graph& graph, std::span<const NodeId> nodes);

}  // namespace tenon::detail
