// CallIndex: the nodes of every module call, found in one pass over a Graph.
#pragma once

#include <span>
#include <vector>

#include "graph/graph.h"

namespace tenon::detail {

class CallIndex {
 public:
  explicit CallIndex(const Graph& graph);
  /// The nodes whose call is `id` or inside it, in program order.
  std::span<const NodeId> nodes(CallId id) const;

 private:
  std::vector<std::size_t> first_;  // of call i in nodes_; one more at the end
  std::vector<NodeId> nodes_;
};

}  // namespace tenon::detail
