// Schedule verification: the scheduled against the unscheduled Graph on random inputs, forward and
// backward, in eval and in training mode with the same dropout masks.
//
// Two questions are asked of every output, of the gradient of every parameter and input, and of every
// buffer. Does the rewritten Graph mean the same: both Graphs in float64 on the CPU agree to rounding,
// for the model's state, for state moved off its initial values (a norm's weight of 1 hides that it
// was dropped), and for special inputs (zeros, ties, large numbers, fully masked rows), at more than
// one set of sizes. Do the kernels that will run compute it well: at the model's dtype and device, the
// error to the float64 reference is at most twice that of the unscheduled model plus a rounding floor.
//
// Integer inputs are drawn such that every index computed from them is in the table that it selects
// from; sizes are chosen so that this is possible. Inputs that select nothing are below 7.
//
// One difference is allowed, and noted: attention with a mask gives zeros to a query that sees no key,
// where the softmax that a model wrote out gives NaN.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schedule/schedule.h"

namespace tenon {

struct VerifyOptions {
  std::uint64_t seed = 0;
  bool eval = true;
  bool training = true;
  /// Sizes of the inputs; empty: small odd ones and a batch of one, as the trace's guards allow.
  std::vector<std::vector<std::int64_t>> sizes = {};
};

/// One compared result of one trial in one mode. The figures of the bound kernels are there in the
/// first trial only.
struct Comparison {
  std::string trial;  ///< "drawn inputs", "other state", "special inputs"
  std::string name;   ///< "output 0", "gradient of q_proj.weight", "buffer norm.running_mean"
  bool training = false;
  bool bound = false;  ///< the kernels that will run were compared as well
  double max_abs_difference =
      0;                         ///< scheduled against unscheduled, at the model's dtype and device
  double scheduled_error = 0;    ///< to the float64 reference
  double unscheduled_error = 0;  ///< to the float64 reference
  double allowed_error = 0;      ///< what scheduled_error must not exceed
  double float64_difference = 0;  ///< between the two Graphs in float64
  double float64_allowed = 0;
  bool ok = false;
};

/// What one trial ran on.
struct TrialSummary {
  std::string name;
  std::vector<std::vector<std::int64_t>> sizes;  ///< of the inputs
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
  /// the schedule gives zeros and the model NaN.
  std::vector<std::string> notes;
  double milliseconds = 0;
  bool ok() const;
  /// The largest max_abs_difference.
  double max_abs_difference() const;
  /// One line a result of the first trial, with the figures; of the others, a line for each that fails.
  std::string to_string() const;
};

/// Compares; changes nothing, neither model nor generator. Nodes with effects are left out.
VerifyReport verify(const Schedule& schedule, const VerifyOptions& options = {});

}  // namespace tenon
