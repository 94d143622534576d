#include "schedule/detail/call_index.h"

namespace tenon::detail {

CallIndex::CallIndex(const Graph& graph) : first_(graph.calls().size() + 1, 0) {
  const auto for_each_call = [&](NodeId id, const auto& f) {
    for (CallId c = graph.node(id).call; c != kNone; c = graph.call(c).parent) {
      f(static_cast<std::size_t>(c));
    }
  };
  for (NodeId id : graph.order()) for_each_call(id, [&](std::size_t c) { ++first_[c + 1]; });
  for (std::size_t c = 1; c < first_.size(); ++c) first_[c] += first_[c - 1];
  nodes_.resize(first_.back());
  std::vector<std::size_t> next = first_;
  for (NodeId id : graph.order()) {
    for_each_call(id, [&](std::size_t c) { nodes_[next[c]++] = id; });
  }
}

std::span<const NodeId> CallIndex::nodes(CallId id) const {
  const auto c = static_cast<std::size_t>(id);
  return std::span(nodes_).subspan(first_[c], first_[c + 1] - first_[c]);
}

}  // namespace tenon::detail
