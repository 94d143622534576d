// What stands, in a scheduled Graph, for nodes that primitives removed.
#pragma once

#include <unordered_map>
#include <vector>

#include "schedule/schedule.h"

namespace tenon::detail {

class Lineage {
 public:
  explicit Lineage(const Schedule& schedule);

  /// The node of the Graph as it stands that gives what `id`, a node of the traced Graph, gave, or
  /// that the computation it was part of has become; kNone when nothing of it is left.
  NodeId stand_in(NodeId id);

 private:
  NodeId after_step(NodeId id, std::size_t step) const;

  const Schedule& schedule_;
  std::vector<std::unordered_map<ValueId, ValueId>> replaced_;  // by step
  std::unordered_map<NodeId, NodeId> known_;
};

}  // namespace tenon::detail
