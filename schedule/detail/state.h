// What the handles of one schedule share, and the transaction that every primitive runs in.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "schedule/schedule.h"

namespace tenon::detail {

class ScheduleState {
 public:
  ScheduleState(std::shared_ptr<nn::Module> model_root, Graph traced)
      : model(std::move(model_root)), original(traced), graph(std::move(traced)) {}

  std::shared_ptr<nn::Module> model;
  Graph original;
  Graph graph;
  std::vector<AppliedPrimitive> applied;

  /// Runs `rewrite` on a draft of the Graph and adopts it if nothing is thrown, the draft verifies
  /// and no new guard was needed; otherwise the Graph stays as it was and the reason is thrown as a
  /// ScheduleError that names the primitive.
  void transact(AppliedPrimitive primitive, const std::function<void(Graph&)>& rewrite);
};

/// The tree that the tracer knows modules and state by.
ModuleTree module_tree(nn::Module& root);

/// The calls of the module at `path`, or below it.
std::vector<CallId> calls_below(const Graph& graph, const std::string& path);

/// Throws ScheduleError unless every node of the match is as it was found.
void check_current(const Graph& graph, const Subgraph& match);

/// The call that all nodes of the match are seen in.
CallId common_call(const Graph& graph, const Subgraph& match);

/// Where new nodes can stand: after everything that the values depend on.
std::size_t position_after(const Graph& graph, const std::vector<ValueId>& values);

/// Sites of the nodes among `nodes` that draw a mask in training, in program order.
std::vector<AttrValue> active_sites(const Graph& graph, const std::vector<NodeId>& nodes);

/// ScheduleError unless `found` can stand for `needed`: same dtype and shape.
void check_same_spec(const Graph& graph, ValueId needed, ValueId found,
                     const std::string& replacement);

}  // namespace tenon::detail
