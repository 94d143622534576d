// What the benchmark programs share: common options, clocks, the rates to compare with and output.
//
// Two times stand for a step. Latency: the host's clock around one step and the wait for it, the median
// of many. Throughput: the device's clock (CUDA events; the host's on the CPU) around many steps queued
// one behind the other, per step. Inputs rotate, so that a step does not find its own in the cache.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "examples/command_line.h"
#include "graph/program.h"

namespace tenon::bench {

/// The options of every benchmark program.
struct CommonOptions {
  std::string device = "auto";  // a GPU where there is one
  std::string dtype = "bfloat16";
  std::uint64_t seed = 0;
  std::string profile;  // a file for the trace of one step
  bool json = false;

  void add_to(CommandLine& line);
  /// --profile, where a program has one step to look at.
  void add_profile_to(CommandLine& line);
  Device chosen_device() const;
};

double median(std::vector<double> values);

struct StepTimes {
  double latency_ms = 0;
  double throughput_ms = 0;
};

/// Times `step(i)`, which queues the i-th step on `device`, with the i % turns-th inputs; i counts on
/// through both measurements. At most `runs` single steps, fewer where they take long.
StepTimes time_steps(Device device, int runs, std::int64_t turns,
                     const std::function<void(std::int64_t)>& step);

/// Host time of one small eager op (the sum of two tensors of 1,024 elements), its launch included.
double eager_us_per_op(Device device, DType dtype);

/// What one H200 sustains: 790 TFLOP/s in 16-bit products, the float32 units' rate otherwise (132 SMs
/// x 256 operations x 1.83 GHz; TF32 is off), and 4.2 TB/s.
struct SustainedRates {
  double flops = 0;
  double bytes = 4.2e12;
};
SustainedRates sustained_rates(DType dtype);

/// Σ over instructions of max(operations/rate, bytes/rate): what the Program's kernels, one after
/// another, cannot beat while its operands come from memory.
double floor_ms(const Program& program, DType dtype);

/// How many sets of inputs of this size exceed a GPU's cache together: a power of two, so that the
/// memory of freed outputs comes back with the same inputs and captured graphs are launched again.
std::int64_t rotation_length(std::size_t bytes_of_one_set);

/// With --profile: the trace of one step (graph/profile.h), and its tables on stderr.
void profile_if_asked(const CommonOptions& options, Program& program,
                      std::span<const Tensor> inputs);

/// One JSON object, or a line for each member.
void print(const nlohmann::ordered_json& figures, bool json);

/// Parses, runs and prints: the body of every main. Exit codes: 2 for wrong use or an error.
int run_program(CommandLine& line, int argc, char** argv, const CommonOptions& options,
                const std::function<nlohmann::ordered_json()>& measure);

}  // namespace tenon::bench
