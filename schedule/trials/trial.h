// What verification runs a region on: values for its inputs, among which parameters and buffers are, by
// what the Graph proves about them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "schedule/facts/value_facts.h"
#include "schedule/regions/correspondence.h"
#include "schedule/regions/region_constants.h"
#include "schedule/trials/index_inputs.h"
#include "tensor/random.h"

namespace tenon::detail {

/// Which values the inputs of a trial have.
enum class InputValues : std::uint8_t {
  drawn,     ///< normal; both truth values in every row of a bool input
  special,   ///< zeros, ties, small ones, equal rows
  spread,    ///< of all magnitudes from 1e-6 to 1e7
  positive,  ///< above zero: where logarithms and roots have values
  large,     ///< exponentials of some overflow
  offset,    ///< rows around a number far from zero
  aimed,     ///< at and around the numbers that the region's nodes hold, of both signs
  masked,  ///< drawn, but masks and integers have rows of one value: all true, all false, all -inf
};

/// One input of a region, seen from outside.
struct InputFacts {
  std::string name;  // "input x", "q_proj.weight", "%relu"
  ValueKind kind = ValueKind::result;
  TensorSpec spec;  // symbolic
  ValueFacts facts;
  Tensor own;  // state: the model's
  bool is_additive_mask = false;
  bool is_fresh = false;  // brought by the schedule
  /// A constant, what the schedule brought, or a buffer that no drawn numbers can stand for: trials
  /// take it as it is.
  bool keeps_its_data() const;
  /// For the key of a structure: all of this that drawn values depend on.
  std::string to_string() const;
};

/// Values for the inputs of one side of a region, the original's.
class TrialInputs {
 public:
  /// `inputs` outlives it.
  TrialInputs(const std::vector<InputFacts>& inputs, RegionConstants constants, std::uint64_t seed);

  /// Parameters and buffers are the model's own from now on.
  void keep_states() { keeps_states_ = true; }
  /// For a Graph at other sizes; `misfit()` then tells whether indices can be in their tables.
  void set_graph(const Graph& graph);
  const std::optional<IndexMisfit>& misfit() const { return misfit_; }
  /// False when an index depends on parameters or on chance, so that ranges must be tried out.
  bool indices_are_known() const { return indices_->all_known(); }
  void limit_indices(std::int64_t bound) { indices_->limit(bound); }

  /// Floating ones in float64, on the CPU; parameters and buffers are the same in every call.
  std::vector<Tensor> make(InputValues values);
  /// One for each floating output, undefined for others.
  std::vector<Tensor> cotangents();
  /// Bool inputs, or floating ones that attention adds to its scores.
  bool has_masks() const;
  /// Numbers that `aimed` inputs will still take in turn.
  std::size_t aims_left() const;

 private:
  Tensor make_input(std::size_t i, InputValues values);
  Tensor state(std::size_t i);
  Tensor weights(const Extents& sizes, double scale);
  Tensor numbers(const InputFacts& input, const Extents& sizes, InputValues values);
  double next_aim(double number);
  Tensor truth_values(const Extents& sizes, InputValues values);
  void hide_rows(std::vector<Tensor>& inputs) const;
  std::vector<double> normal(std::int64_t count);
  std::vector<double> uniform_numbers(std::int64_t count);

  const std::vector<InputFacts>& inputs_;
  RegionConstants constants_;
  std::vector<double> aims_;
  std::size_t aimed_ = 0;
  Generator generator_;
  const Graph* graph_ = nullptr;
  std::optional<IndexInputs> indices_;
  std::optional<IndexMisfit> misfit_;
  std::vector<Tensor> states_;  // drawn so far
  bool keeps_states_ = false;
};

/// Inputs of a Graph at these sizes, floating ones in float64, whose indices are in their tables.
std::vector<Tensor> draw_inputs(const Graph& graph, const DimBindings& sizes, std::uint64_t seed);

/// The Graph without nodes that do something beside their result: those pass operand 0 on.
Graph without_effects(const Graph& graph);

/// All that training draws, as text: of a mask its site, probability, rows and columns at these
/// sizes, of a random tensor its site, op and sizes. A fused op's are those of its decomposition.
std::vector<std::string> masks_of(const Graph& graph, const DimBindings& sizes);

}  // namespace tenon::detail
