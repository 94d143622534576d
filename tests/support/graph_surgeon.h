// Breaks what the Graph's own editing functions keep, so that verifiers have something to find.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace tenon {

struct GraphSurgeon {
  static Node& node(Graph& graph, NodeId id) { return graph.mutable_node(id); }
  static Value& value(Graph& graph, ValueId id) { return graph.mutable_value(id); }
  static std::vector<NodeId>& order(Graph& graph) { return graph.order_; }
  static std::vector<ValueId>& outputs(Graph& graph) { return graph.outputs_; }
  static std::vector<ValueId>& inputs(Graph& graph) { return graph.inputs_; }
  static std::vector<StateWrite>& writes(Graph& graph) { return graph.writes_; }
  static std::vector<ModuleCall>& calls(Graph& graph) { return graph.calls_; }
  /// The order as it is now becomes that of the positions too.
  static void accept_order(Graph& graph) { graph.renumber(0); }
};

}  // namespace tenon
