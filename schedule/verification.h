// Schedule verification: the scheduled against the unscheduled Graph on random inputs, in eval and in
// training mode with the same dropout masks.
//
// Two questions are asked of every output. Does the rewritten Graph mean the same: both Graphs in
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

/// One output in one mode.
struct OutputComparison {
  bool training = false;
  int output = 0;
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
  std::vector<OutputComparison> outputs;
  std::vector<std::vector<std::int64_t>> sizes;
  double milliseconds = 0;
  bool ok() const;
  /// The largest max_abs_difference.
  double max_abs_difference() const;
  /// One line an output, with the figures.
  std::string to_string() const;
};

/// Compares; changes nothing, neither model nor generator.
VerifyReport verify(const Schedule& schedule, const VerifyOptions& options = {});

}  // namespace tenon
