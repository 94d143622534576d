#include "schedule/facts/run_results.h"

#include <algorithm>

namespace tenon::detail {

RunResults::RunResults(const Graph& graph) : graph_(graph), values_(graph.outputs()) {
  for (const StateWrite& write : graph.writes()) values_.push_back(write.value);
  std::sort(values_.begin(), values_.end());
}

bool RunResults::contains(ValueId id) const {
  return std::binary_search(values_.begin(), values_.end(), id);
}

std::string RunResults::describe(ValueId id) const {
  if (!contains(id)) return "";
  for (const StateWrite& write : graph_.writes()) {
    if (write.value == id) return "the write of " + graph_.value_name(write.state);
  }
  return "the graph's output";
}

}  // namespace tenon::detail
