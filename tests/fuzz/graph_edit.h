// Edits of a Graph that no primitive makes, for tests of what catches wrong ones:
//
//   GraphEdit edit(graph);
//   edit.wrap(edit.nth("relu"), [](const Tensor& y) { return y * 2.0; });
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/tracer.h"
#include "schedule/schedule.h"

namespace tenon::fuzz {

/// Edits of one Graph. Functions that write nodes run under the tracer, in front of the node they
/// replace.
class GraphEdit {
 public:
  using Operands = std::vector<Tensor>;
  explicit GraphEdit(Graph& graph) : graph_(graph) {}

  Graph& graph() { return graph_; }
  /// The n-th node of that op in program order.
  NodeId nth(const std::string& op, std::size_t n = 0) const;
  /// Puts what `make` returns for the node's operands in place of its first result.
  void replace(NodeId id, const std::function<Tensor(const Operands&)>& make);
  /// The node's result goes through `f`.
  void wrap(NodeId id, const std::function<Tensor(const Tensor&)>& f);
  /// Operand `i` goes through `f`.
  void feed(NodeId id, std::size_t i, const std::function<Tensor(const Tensor&)>& f);
  void set(NodeId id, const std::string& attribute, const AttrValue& value);
  /// Inside of the functions above: a node's result, a graph input.
  Tensor result(NodeId id, std::size_t output = 0) const;
  Tensor input(std::size_t i) const;
  /// A parameter or buffer by name; the Graph knows it by identity.
  Tensor state(const std::string& name) const;

 private:
  Graph& graph_;
  GraphBuilder* builder_ = nullptr;
};

/// The schedule with another Graph, as a primitive that did wrong would leave it.
Schedule with_graph(const Schedule& schedule, Graph graph);

}  // namespace tenon::fuzz
