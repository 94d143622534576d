// Schedule verification: what primitives and passes rewrote against what stood there.
//
// Two questions, two answers. Do the numbers agree: each rewritten region (schedule/detail/
// correspondence.h says which these are, and why they are enough) is compared as a Graph of its own,
// once for all regions of one structure: outputs, gradients of every parameter and input, buffers and
// dropout masks, in evaluation and, where that differs, in training. First its meaning, in float64 on
// the CPU; then the kernels that will run, at the model's dtype and device: their error to the float64
// result is at most twice that of the unscheduled model plus some roundings of the terms. Do the
// borders agree: every region stands between the same values, parameters, buffers and dropout sites as
// what it replaces, so that two layers whose weights were swapped differ though each layer's numbers
// are right.
//
// Inputs of a region are drawn from what the Graph proves about them, parameters and buffers are drawn
// too. Values and sizes that the constants of either side point to are among them, and so are the
// traced sizes, with one row. The values of one short run of the model may refuse a rewrite. Where a
// region fails on drawn values only, the nodes that make its inputs join it, at last up to the model's
// inputs: a rewrite that holds for the values that can be there is accepted. Integers are drawn such
// that every index computed from them is in the table that it selects from.
//
// Elements are compared one by one (schedule/trials/comparison.h). What is not finite in the model is
// not compared; where the model gives NaN, the schedule may give anything, and that is noted:
// attention with a mask gives zeros to a query that sees no key.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <set>
#include <string>
#include <vector>

#include "schedule/schedule.h"

namespace tenon {

struct VerifyOptions {
  std::uint64_t seed = 0;
  bool eval = true;
  bool training = true;
  /// Sizes of the model's inputs; empty: small odd ones, a batch of one, the traced ones, and those
  /// that constants point to, as the trace's guards allow.
  std::vector<std::vector<std::int64_t>> sizes = {};
  /// Compares the models as wholes, as one region: everything runs many times in float64.
  bool whole = false;
  /// Gets a line a second while it lasts; null: nobody.
  std::ostream* progress = nullptr;
};

/// One compared result of one trial of a region in one mode.
struct Comparison {
  std::string trial;  ///< "drawn inputs", "special inputs", "recorded inputs"
  std::string
      name;  ///< "output 0", "%q_proj", "gradient of q_proj.weight", "buffer bn.running_mean"
  bool training = false;
  bool bound = false;  ///< the kernels that will run were compared as well
  double max_abs_difference =
      0;                         ///< scheduled against unscheduled, at the model's dtype and device
  double scheduled_error = 0;    ///< to the float64 reference, where it comes closest to what is
  double allowed_error = 0;      ///< allowed
  double unscheduled_error = 0;  ///< to the float64 reference, the largest
  double float64_difference = 0;  ///< between the two Graphs in float64, likewise
  double float64_allowed = 0;
  bool ok = false;
  std::string region;  ///< what its nodes make: "self_attn.q_proj and 2 more"; "" for the model
  std::size_t compared = 0;        ///< elements that are finite on both sides
  std::size_t finite_for_nan = 0;  ///< elements that are NaN in the model only
  bool is_empty = false;           ///< it has no elements
};

/// What one trial ran on.
struct TrialSummary {
  std::string name;
  std::vector<std::vector<std::int64_t>> sizes;  ///< of the model's inputs
  std::int64_t divisor = 1;                      ///< of fixed widths: a weight's, a head's
};

struct VerifyReport {
  std::vector<Comparison> results;
  std::vector<TrialSummary> trials;
  /// Dropout masks and random tensors that training draws: the same sites, probabilities and shapes
  /// are needed.
  std::vector<std::string> masks_missing;  ///< drawn by the model only
  std::vector<std::string> masks_added;    ///< drawn by the schedule only
  /// What could not be compared: another number of outputs, state that is not the model's, a run that
  /// the model survives and the schedule does not.
  std::vector<std::string> errors;
  /// No failures: trials that the model itself refuses, so that there was nothing to compare, and where
  /// the schedule gives numbers and the model NaN.
  std::vector<std::string> notes;
  /// Outputs, gradients and buffers of which no finite element was compared.
  std::vector<std::string> not_compared;
  /// Trials that would have cost too much.
  std::vector<std::string> left_out;
  std::size_t regions = 0;
  std::size_t distinct_regions = 0;  ///< structures
  double milliseconds = 0;
  double record_milliseconds = 0;  ///< of it, the run that values were recorded of
  bool ok() const;
  /// The largest max_abs_difference.
  double max_abs_difference() const;
  /// One line: what was verified and what that cost.
  std::string summary() const;
  /// A line for each result of the first trial, with the figures, and for each that fails elsewhere;
  /// then what was not compared, and the trials.
  std::string to_string() const;
};

/// Compares; changes nothing, neither model nor generator. Nodes with effects are left out.
VerifyReport verify(const Schedule& schedule, const VerifyOptions& options = {});

namespace detail {
/// VerificationError, in the name of `caller`, unless the schedule verifies, and every result was
/// compared on some finite value or `accept_uncompared`. Logs the summary, unless `log` is null.
void require_verified(const Schedule& schedule, const char* caller, bool accept_uncompared,
                      std::ostream* log);
/// The same for two Graphs of a step, the second rewritten from a copy of the first by a pass: values
/// only, gradients are among them. `examples` are inputs to record values with; empty: none are.
/// Structures among `agreed`, unless null, are not compared again; those that agree now join them.
VerifyReport verify_graphs(const Graph& original, const Graph& rewritten,
                           const std::vector<Tensor>& examples, const VerifyOptions& options,
                           std::set<std::string>* agreed = nullptr);
}  // namespace detail

}  // namespace tenon
