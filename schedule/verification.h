// Schedule verification: the scheduled against the unscheduled Graph on random inputs, forward and
// backward, in eval and in training mode with the same dropout masks.
//
// Two questions are asked of every output, of the gradient of every parameter and input, and of every
// buffer. Does the rewritten Graph mean the same: both Graphs in
// float64 on the CPU agree to rounding. Do the kernels that will run compute it well: at the model's
// dtype and device, the error to the float64 reference is at most twice that of the unscheduled
// model plus a rounding floor.
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
  /// Sizes of the inputs; empty: small odd ones that the trace's guards allow.
  std::vector<std::vector<std::int64_t>> sizes = {};
};

/// One compared result in one mode.
struct Comparison {
  std::string name;  ///< "output 0", "gradient of q_proj.weight", "buffer norm.running_mean"
  bool training = false;
  double max_abs_difference =
      0;                         ///< scheduled against unscheduled, at the model's dtype and device
  double scheduled_error = 0;    ///< to the float64 reference
  double unscheduled_error = 0;  ///< to the float64 reference
  double allowed_error = 0;      ///< what scheduled_error must not exceed
  double float64_difference = 0;  ///< between the two Graphs in float64
  double float64_allowed = 0;
  bool ok = false;
};

struct VerifyReport {
  std::vector<Comparison> results;
  /// Dropout sites that draw masks in training: equal sets are needed.
  std::vector<std::string> masks_missing;  ///< drawn by the model only
  std::vector<std::string> masks_added;    ///< drawn by the schedule only
  std::vector<std::vector<std::int64_t>> sizes;
  double milliseconds = 0;
  bool ok() const;
  /// The largest max_abs_difference.
  double max_abs_difference() const;
  /// One line a result, with the figures.
  std::string to_string() const;
};

/// Compares; changes nothing, neither model nor generator.
VerifyReport verify(const Schedule& schedule, const VerifyOptions& options = {});

}  // namespace tenon
