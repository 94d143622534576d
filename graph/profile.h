// Where the time of a Program goes: each instruction timed by the device's clock, as a Chrome or
// Perfetto trace and as tables by module and by kernel.
//
//   Profile times = profile(program, inputs);
//   times.write_chrome_trace("step.json");   // open in ui.perfetto.dev or chrome://tracing
//   std::cerr << times.to_string();
#pragma once

#include <span>
#include <string>
#include <vector>

#include "graph/program.h"

namespace tenon {

/// One instruction: what it is and when it ran, in µs of device time.
struct ProfiledInstruction {
  InstructionInfo info;
  double start_us = 0;
  double duration_us = 0;
};

/// The instructions of a Program in the order in which its one stream runs them.
struct Profile {
  std::string device;
  std::vector<ProfiledInstruction> instructions;

  double total_us() const;
  /// Two tables, longest first: by module, layers of one kind together ("blocks.*.attn"), and by
  /// kernel. Calls, time, share of the whole, TB/s of operands and results, TFLOP/s where ops say.
  std::string to_string() const;
  /// One row a stream, one event an instruction: module path and kernel, with bytes and operations.
  /// ValueError when the file cannot be written.
  void write_chrome_trace(const std::string& path) const;
};

struct ProfileOptions {
  int runs =
      5;  ///< of which each instruction's median duration counts, behind one that is not timed
};

/// Launches kernel by kernel, a clock between any two, so a captured run is a little shorter. The runs
/// are real ones: they change the state that the Program writes.
Profile profile(Program& program, std::span<const Tensor> inputs,
                const ProfileOptions& options = {}, Generator& generator = default_generator());

}  // namespace tenon
