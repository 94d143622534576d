// Values that a model has when it really runs: of one short run on its example inputs. Drawn values may
// miss what only these show; what they do not show excuses nothing.
#pragma once

#include <set>
#include <unordered_map>
#include <vector>

#include "graph/graph.h"
#include "tensor/tensor.h"

namespace tenon::detail {

/// Runs the Graph in this mode, call by call, on its device and in its dtypes, and returns the wanted
/// values; nothing else is kept longer than it is read. Throws what the ops throw.
std::unordered_map<ValueId, Tensor> record_values(const Graph& graph, const DimBindings& sizes,
                                                  const std::vector<Tensor>& inputs,
                                                  const std::set<ValueId>& wanted, bool training);

}  // namespace tenon::detail
