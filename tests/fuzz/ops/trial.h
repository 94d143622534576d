// One program on trial: run eagerly, step by step beside the reference, and as a Graph that is
// lowered and run, in training and evaluation mode.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {

/// Calls that are made otherwise: faults, planted between the fuzzer and Tenon.
using Overrides = std::map<std::string, Run>;

struct TrialOptions {
  Device device = kCpu;
  const Overrides* overrides = nullptr;
};

struct TrialResult {
  std::string mismatch;  // empty: all agree
  std::size_t steps = 0;
  std::size_t refusals = 0;
  bool traced = false;
  bool trace_refused = false;  // with the remedy: to change a clone()
};

TrialResult run_trial(const Program& program, const TrialOptions& options);

/// The program with every step left out without which it still has a mismatch.
Program shrunk(const Program& program, const TrialOptions& options);

}  // namespace tenon::op_fuzz
