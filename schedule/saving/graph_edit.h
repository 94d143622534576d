// What turned one Graph into a later one, as JSON that does not depend on ids: how a primitive's effect
// is saved, and done again to the Graph of another model of the same structure.
//
// Nodes and module calls are numbered: those of the traced Graph in program order, then new ones in
// the order in which edits bring them. "n12" is the result of node 12 ("n12:1" its second), "i0" an
// input, "%name" state.
#pragma once

#include <nlohmann/json.hpp>
#include <unordered_map>
#include <vector>

#include "graph/graph.h"

namespace tenon::detail {

class GraphNumbering {
 public:
  /// Numbers what the traced Graph has.
  explicit GraphNumbering(const Graph& traced);

  int number_of(NodeId id) const { return numbers_.at(id); }
  /// ScheduleError when `graph` has no such node, or no longer, or this is no number.
  NodeId node_at(const Graph& graph, const nlohmann::json& number) const;
  void add_node(NodeId id);
  CallId call_at(const nlohmann::json& number) const;
  int call_number(CallId id) const { return call_numbers_.at(id); }
  void add_call(CallId id);

  nlohmann::json reference(const Graph& graph, ValueId id) const;
  /// ScheduleError when there is no such value.
  ValueId value_at(const Graph& graph, const nlohmann::json& reference) const;

 private:
  std::unordered_map<NodeId, int> numbers_;
  std::vector<NodeId> nodes_;
  std::unordered_map<CallId, int> call_numbers_;
  std::vector<CallId> calls_;
};

/// The difference between a Graph and what a primitive made of it. Numbers what is new.
nlohmann::json describe_edit(const Graph& before, const Graph& after, GraphNumbering& numbering);
/// Does the same to `graph`. ScheduleError, or what inference throws, where it does not fit.
void apply_edit(Graph& graph, const nlohmann::json& edit, GraphNumbering& numbering);

/// What must be equal for a schedule to be replayed: inputs, state, module calls and nodes, one line
/// each, without dtypes and devices.
std::vector<std::string> structure_lines(const Graph& traced);

}  // namespace tenon::detail
