// ReferenceRun: what a Graph of concrete sizes computes, forward and backward, node by node in float64
// on the CPU: the meaning that verification compares. And how well that is determined: Monte Carlo
// arithmetic (D. S. Parker, "Monte Carlo Arithmetic", 1997) runs it again with every rounding replaced
// by random noise, whose effect on an element is the size of the terms that made it.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"
#include "tensor/random.h"
#include "tensor/tensor.h"

namespace tenon::detail {

/// What a run gives; gradients by input, undefined where an output does not depend on it.
struct RunResults64 {
  std::vector<Tensor> outputs;
  std::vector<Tensor> gradients;
};

/// How a run is made.
struct RunMode {
  bool training = false;
  bool gradients = true;
  RandomState random = {};  // that masks are drawn with
};

class ReferenceRun {
 public:
  /// Gradients are taken of the inputs for which `differentiable`.
  ReferenceRun(const Graph& graph, std::vector<bool> differentiable);

  /// Floating inputs in any dtype, on the CPU; a cotangent for each output, undefined for those that
  /// take none. Throws what the ops throw.
  RunResults64 run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& cotangents,
                   const RunMode& mode) const;

  /// By how much relative noise of 1 in each computed number, and in each input that is no integer,
  /// moves the elements: of all outputs, then of all gradients, empty where undefined. Integers stay,
  /// and so do those among results that were computed from integers alone, bools, and what is decided
  /// by comparisons.
  std::vector<std::vector<double>> sensitivity(const std::vector<Tensor>& inputs,
                                               const std::vector<Tensor>& cotangents,
                                               const RunMode& mode) const;

 private:
  class Evaluator;
  RunResults64 run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& cotangents,
                   const RunMode& mode, Evaluator& evaluator) const;

  const Graph& graph_;
  std::vector<bool> differentiable_;
  std::vector<Attrs> attrs_;  // by place in the order
};

}  // namespace tenon::detail
