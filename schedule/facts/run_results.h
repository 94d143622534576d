// RunResults: the values that a run of a Graph hands out or stores, whatever its nodes do with them.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"

namespace tenon::detail {

class RunResults {
 public:
  explicit RunResults(const Graph& graph);
  bool contains(ValueId id) const;
  /// "the graph's output", "the write of %norm.running_mean"; "" for another value.
  std::string describe(ValueId id) const;

 private:
  const Graph& graph_;
  std::vector<ValueId> values_;  // sorted
};

}  // namespace tenon::detail
