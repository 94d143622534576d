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
  ScheduleState(std::shared_ptr<nn::Module> model_root, Graph traced,
                std::vector<Tensor> short_examples = {})
      : model(std::move(model_root)),
        original(traced),
        graph(std::move(traced)),
        examples(std::move(short_examples)) {}

  std::shared_ptr<nn::Module> model;
  Graph original;
  Graph graph;
  std::vector<Tensor> examples;  // see Schedule::examples
  ExclusiveUse in_use;           // by what changes or builds it
  std::vector<AppliedPrimitive> applied;
  std::vector<Graph>
      history;  // before each applied primitive; entries are shared, so this is cheap

  /// Runs `rewrite` on a draft of the Graph and adopts it if nothing is thrown, the draft verifies
  /// and no new guard was needed; otherwise the Graph stays as it was and the reason is thrown as a
  /// ScheduleError that names the primitive.
  void transact(AppliedPrimitive primitive, const std::function<void(Graph&)>& rewrite);
};

/// The tree that the tracer knows modules and state by.
ModuleTree module_tree(nn::Module& root);

/// The same, with the parameters that the schedule added.
ModuleTree state_tree(const Schedule& schedule);

/// The calls of the module at `path`, or below it.
std::vector<CallId> calls_below(const Graph& graph, const std::string& path);

/// The calls of the module at `path` that still have nodes, in program order.
std::vector<CallId> live_calls(const Graph& graph, const std::string& path);

/// One module call as a match: its tensors in and out, and all nodes inside. ScheduleError when it
/// returns a tensor that it did not make.
Subgraph subgraph_of_call(const Graph& graph, CallId id);

/// The path of a module with a hook strictly inside of the one at `path`, or "".
std::string hooked_module_below(const Graph& graph, const std::string& path);

/// The recomputation region that all of the nodes are in (kNone: none); ScheduleError when they are
/// not in the same.
std::int32_t common_region(const Graph& graph, const std::vector<NodeId>& nodes);

/// Throws ScheduleError unless there are matches, each complete, and every node is as it was found.
void check_current(const Graph& graph, const Matches& matches);

/// ScheduleError when a node is in two of the matches, or in one twice.
void check_disjoint(const Graph& graph, const Matches& matches);

/// Both, and for each match check_match, and that what it takes and returns exists and no module
/// inside has a hook: its effect would be lost.
void check_replaceable(const Graph& graph, const Matches& matches);

/// ScheduleError unless the match's results exist, and there are some.
void check_results(const Graph& graph, const Subgraph& match);

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
