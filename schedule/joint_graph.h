// The joint Graph: the trace of a step, forward and backward, over a forward Graph.
//
//   forward Graph              joint Graph
//   x ─▶ linear ─▶ gelu ─▶ y   x ─▶ linear ─▶ gelu ─▶ y ─▶ loss
//                                     ▼         ▼           ▼
//                              dw ◀─ products ◀ gelu' ◀─── 1
//
// There is no second differentiation engine: the forward nodes are called again under the tracer with
// autograd recording, and whatever the step then does (a loss, backward, an optimizer) is recorded
// behind them. A value that backward reads is an operand like any other, so it lives exactly as long
// as it is needed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graph/tracer.h"

namespace tenon {

/// What is done to a joint Graph beside leaving out what no result needs.
struct JointPasses {
  bool join_slices = true;         ///< graph/passes/join_slices.h
  bool fuse_gelu_gradient = true;  ///< graph/passes/fuse_gelu_gradient.h
  bool accumulate = true;          ///< graph/passes/accumulate.h
  bool recompute = true;           ///< graph/passes/recompute.h; off: checkpointed regions are kept
};

/// Called after each pass that is on, with the Graph before and after it; what it throws ends the
/// recording.
using PassObserver = std::function<void(const char* pass, const Graph& before, const Graph& after)>;

class JointGraph {
 public:
  /// Starts with `forward`'s inputs; `tree` names the state that the step may touch.
  JointGraph(const Graph& forward, const ModuleTree& tree);
  JointGraph(const JointGraph&) = delete;
  JointGraph& operator=(const JointGraph&) = delete;

  /// An input beside the forward Graph's; its sizes become symbols.
  Tensor add_input(const ExampleInput& input);
  /// The forward Graph's input `i`; gradients flow to it once it was asked to require one.
  Tensor& input(std::size_t i) { return inputs_.at(i); }
  std::size_t num_inputs() const { return inputs_.size(); }

  /// Calls the forward nodes, then `step` on their outputs, and returns the Graph of both, whose
  /// outputs are what `step` returned, after the passes. Call it once.
  Graph record(const std::function<std::vector<Tensor>(std::span<const Tensor>)>& step,
               const JointPasses& passes = {}, const PassObserver& observer = {});

 private:
  void run_passes(const JointPasses& passes, const PassObserver& observer);

  const Graph& forward_;
  Graph graph_;
  GraphBuilder builder_;
  std::vector<Tensor> inputs_;
  int symbols_ = 0;
};

/// The forward Graph with gradients: outputs are those of `forward`, then the gradient of
/// Σ output·cotangent by each name in `gradients`, then the values of its state writes, which are not
/// written. Inputs are those of `forward`, then a cotangent for each output that has one. The user's
/// gradient hooks do not run: these gradients are for comparing, none of a training step.
struct GradientGraph {
  Graph graph;
  std::vector<std::string> outputs;  // "output 0", "gradient of q.weight", "buffer bn.running_mean"
  std::vector<std::size_t> cotangents;  // the outputs that take a cotangent
  std::vector<std::size_t> gradient_inputs;  // of the gradients by inputs: which ones
};
/// `inputs`, unless null, says of each input whether its gradient is taken; else of floating ones.
GradientGraph differentiate(const Graph& forward, const ModuleTree& tree,
                            const JointPasses& passes = {},
                            const std::vector<bool>* inputs = nullptr);

}  // namespace tenon
