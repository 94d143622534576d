// What verification runs models on: input sizes, input values, and values for the state that special
// initial ones (norm weights of 1, biases of 0) would hide differences behind.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "graph/program.h"
#include "graph/tracer.h"
#include "schedule/detail/hidden_rows.h"
#include "schedule/detail/index_inputs.h"
#include "tensor/random.h"

namespace tenon::detail {

/// One set of inputs and state.
struct Trial {
  std::string name;                // "drawn inputs"
  std::vector<Tensor> inputs;      // of the forward Graph, floating ones in its dtype
  std::vector<Tensor> cotangents;  // by output; undefined for one that is not floating
  StateValues states;              // in float64 on the CPU; empty: the model's own
};

/// By how much, relatively, TrialMaker::nudged moves a number at most: a few roundings.
inline constexpr double kNudge = 0x1p-50;

/// Which values the inputs of a trial have.
enum class InputValues : std::uint8_t {
  drawn,    ///< normal; both truth values in every row of a bool input
  special,  ///< zeros, ties, small ones, equal rows
  large,    ///< exponentials of some overflow
  masked,   ///< drawn, but masks and integers have rows of one value: all true, all false, all -inf
};

/// Which values the state of a trial has.
enum class StateChange : std::uint8_t {
  none,
  shifted,  ///< every parameter and buffer moved a little, positive buffers staying positive
  scaled,   ///< matrices times 32, so that exponentials overflow unless their maximum is taken off
};

class TrialMaker {
 public:
  TrialMaker(const Graph& graph, const ModuleTree& tree, std::uint64_t seed)
      : graph_(graph),
        tree_(tree),
        additive_masks_(additive_mask_inputs(graph)),
        generator_(seed),
        indices_(graph) {}

  /// Sizes for all inputs: `given`, or the first of `candidates` that the guards allow, by which each
  /// free size symbol takes the next number, and at which every index can be in its table; at last the
  /// example's. The sizes stay until the next call.
  void choose_sizes(const std::vector<std::vector<std::int64_t>>& given,
                    const std::vector<std::vector<std::int64_t>>& candidates);
  const DimBindings& sizes() const { return sizes_; }
  IndexInputs& indices() { return indices_; }
  /// What selects from where it cannot, whatever the integers of these sizes are.
  const std::optional<IndexMisfit>& misfit() const { return misfit_; }
  /// Bool inputs, or floating ones that attention adds to its scores.
  bool has_masks() const;

  Trial make(std::string name, InputValues values, StateChange change);
  /// The same trial with every number moved by a few roundings, equal numbers alike and zeros not at
  /// all: how far results move is how well they are determined.
  Trial nudged(const Trial& trial) const;

 private:
  /// True when every index of `drawn` inputs is in its table.
  bool take(DimBindings sizes);
  std::vector<Tensor> inputs(InputValues values);
  /// Zeros for integers.
  Tensor input(ValueId id, InputValues values);
  Tensor numbers(const TensorSpec& spec, InputValues values);
  Tensor additive_mask(const TensorSpec& spec);
  void hide_rows(std::vector<Tensor>& inputs) const;
  Tensor special_numbers(const TensorSpec& spec, const Extents& sizes);
  Tensor truth_values(const Extents& sizes, InputValues values);
  StateValues states(StateChange change);
  std::vector<double> normal(std::int64_t count);
  std::vector<double> uniform_numbers(std::int64_t count);

  const Graph& graph_;
  const ModuleTree& tree_;
  const std::set<ValueId> additive_masks_;
  Generator generator_;
  IndexInputs indices_;
  DimBindings sizes_;
  std::optional<IndexMisfit> misfit_;
};

/// The Graph without nodes that do something beside their result: those pass operand 0 on.
Graph without_effects(const Graph& graph);

/// All that training draws, as text: of a mask its site, probability, rows and columns at these
/// sizes, of a random tensor its site, op and sizes. A fused op's are those of its decomposition.
std::vector<std::string> masks_of(const Graph& graph, const DimBindings& sizes);

}  // namespace tenon::detail
