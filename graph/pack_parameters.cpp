// Packing: the operands of a `cat` of parameters become slices of one storage.
//
//   q.weight [n]   k.weight [n]   v.weight [n]        |  q.weight  |  k.weight  |  v.weight  |
//       \              |              /        =>      \__________ cat: an alias ___________/
//        `------------ cat -----------'
#include <algorithm>
#include <unordered_map>

#include "graph/program.h"
#include "tensor/detail/check.h"
#include "tensor/interpreter.h"

namespace tenon {
namespace {

using Group = std::vector<ValueId>;

bool is_adjacent(const Graph& graph, const Group& group) {
  for (std::size_t i = 0; i + 1 < group.size(); ++i) {
    const Tensor& a = graph.value(group[i]).tensor;
    const Tensor& b = graph.value(group[i + 1]).tensor;
    if (a.storage() != b.storage() || !a.is_contiguous() || !b.is_contiguous() ||
        b.layout().offset != a.layout().offset + a.layout().numel()) {
      return false;
    }
  }
  return true;
}

std::vector<Group> find_groups(const Graph& graph) {
  std::vector<Group> groups;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (!node.op->has(Trait::concatenation)) continue;
    const std::size_t axis = node.attrs.find("dim");
    const bool rows = axis < node.attrs.size() && equal(node.attrs.value(axis), std::int64_t{0});
    const bool parameters = std::all_of(node.inputs.begin(), node.inputs.end(), [&](ValueId input) {
      return graph.value(input).kind == ValueKind::parameter;
    });
    if (rows && parameters) groups.push_back(node.inputs);
  }
  return groups;
}

/// Each parameter in one place of one group, and its storage not shared with anything else.
void check_groups(const Graph& graph, const std::vector<Group>& groups) {
  std::unordered_map<ValueId, std::size_t> member;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (ValueId id : groups[g]) {
      const Value& value = graph.value(id);
      const auto [known, inserted] = member.emplace(id, g);
      TENON_CHECK(inserted || (known->second != g && groups[known->second] == groups[g]),
                  ScheduleError,
                  "parameter '{}' would have to lie in two places of packed storage; a weight that "
                  "is shared (tied) cannot be packed twice",
                  value.name);
      const std::size_t own =
          static_cast<std::size_t>(value.tensor.layout().numel()) * size_of(value.tensor.dtype());
      TENON_CHECK(is_adjacent(graph, groups[g]) || value.tensor.storage()->bytes() == own,
                  ScheduleError,
                  "parameter '{}' is part of another packing already; a model has one packing of "
                  "its parameters at a time",
                  value.name);
    }
  }
}

void pack(const Graph& graph, const Group& group) {
  const Tensor& first = graph.value(group[0]).tensor;
  std::int64_t total = 0;
  for (ValueId id : group) total += graph.value(id).tensor.layout().numel();
  const Tensor packed = empty(Extents{total}, {first.dtype(), first.device()});
  std::int64_t offset = 0;
  for (ValueId id : group) {
    Tensor parameter = graph.value(id).tensor;
    Layout layout = Layout::contiguous(parameter.layout().sizes);
    layout.offset = offset;
    offset += layout.numel();
    Tensor slice(packed.storage(), parameter.dtype(), layout);
    const NoGradGuard no_grad;
    slice.copy_(parameter);
    parameter.set_data_(slice);
  }
}

}  // namespace

void pack_parameters(const Graph& graph) {
  const std::vector<Group> groups = find_groups(graph);
  check_groups(graph, groups);
  for (const Group& group : groups) {
    if (!is_adjacent(graph, group)) pack(graph, group);
  }
}

}  // namespace tenon
