// Random sequences of public tensor calls, run eagerly, traced and against a reference interpreter
// on plain arrays; see ops/call.h for what a call is and ops/trial.h for how a sequence is tried.
//
//   fuzz_ops --count 200000 --seed 7 [--device cuda] [--jobs 2] [--first 0] [--json]
//
// A mismatch prints the shortest sequence that still has one and the command that repeats it.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/command_line.h"
#include "tensor/parallel.h"
#include "tests/fuzz/ops/trial.h"
#include "tests/fuzz/workers.h"

namespace {

using tenon::op_fuzz::Program;
using tenon::op_fuzz::TrialOptions;
using tenon::op_fuzz::TrialResult;

struct Options {
  std::uint64_t count = 2000;
  std::uint64_t seed = 1;
  std::uint64_t first = 0;
  int jobs = 1;
  int max_mismatches = 20;
  std::string device = "cpu";
  bool json = false;
  bool show = false;
};

struct Tally {
  std::uint64_t sequences = 0;
  std::uint64_t steps = 0;
  std::uint64_t refusals = 0;
  std::uint64_t traced = 0;
  std::uint64_t traces_refused = 0;
  std::vector<std::string> mismatches;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Tally, sequences, steps, refusals, traced, traces_refused,
                                   mismatches)

std::string describe(const Options& options, std::uint64_t index, const Program& program,
                     const TrialOptions& trial) {
  const Program smallest = tenon::op_fuzz::shrunk(program, trial);
  std::string text = "sequence " + std::to_string(index) + "\n" + smallest.to_string() +
                     tenon::op_fuzz::run_trial(smallest, trial).mismatch +
                     "\nrepeat: fuzz_ops --seed " + std::to_string(options.seed) + " --first " +
                     std::to_string(index) + " --count 1";
  if (options.device != "cpu") text += " --device " + options.device;
  return text + "\n";
}

/// Every jobs-th sequence, from `job` on.
Tally run_share(const Options& options, int job) {
  tenon::set_num_threads(1);
  const TrialOptions trial{.device = tenon::Device::parse(options.device)};
  Tally tally;
  const std::uint64_t report_every = std::max<std::uint64_t>(1, options.count / 20);
  for (auto i = static_cast<std::uint64_t>(job); i < options.count;
       i += static_cast<std::uint64_t>(options.jobs)) {
    const std::uint64_t index = options.first + i;
    tenon::fuzz::SplitMix64 source(options.seed, index);
    const Program program = tenon::op_fuzz::draw_program(source, !trial.device.is_cpu());
    if (options.show) std::cerr << "sequence " << index << "\n" << program.to_string();
    const TrialResult result = tenon::op_fuzz::run_trial(program, trial);
    ++tally.sequences;
    tally.steps += result.steps;
    tally.refusals += result.refusals;
    tally.traced += result.traced;
    tally.traces_refused += result.trace_refused;
    if (!result.mismatch.empty()) {
      tally.mismatches.push_back(describe(options, index, program, trial));
      std::cerr << "\nMISMATCH in " << tally.mismatches.back() << std::flush;
      if (static_cast<int>(tally.mismatches.size()) >= options.max_mismatches) break;
    }
    if (i > 0 &&
        i / report_every != (i - static_cast<std::uint64_t>(options.jobs)) / report_every) {
      std::fprintf(stderr, "sequence %llu of %llu\n", static_cast<unsigned long long>(i),
                   static_cast<unsigned long long>(options.count));
    }
  }
  return tally;
}

Tally run_all(const Options& options) {
  Tally sum;
  for (const std::string& text : tenon::fuzz::run_jobs(
           options.jobs, [&](int job) { return nlohmann::json(run_share(options, job)).dump(); })) {
    const Tally share = nlohmann::json::parse(text).get<Tally>();
    sum.sequences += share.sequences;
    sum.steps += share.steps;
    sum.refusals += share.refusals;
    sum.traced += share.traced;
    sum.traces_refused += share.traces_refused;
    sum.mismatches.insert(sum.mismatches.end(), share.mismatches.begin(), share.mismatches.end());
  }
  return sum;
}

void report(const Options& options, const Tally& tally) {
  if (options.json) {
    nlohmann::ordered_json line = {{"sequences", tally.sequences},
                                   {"steps", tally.steps},
                                   {"refusals", tally.refusals},
                                   {"traced", tally.traced},
                                   {"traces_refused", tally.traces_refused},
                                   {"mismatches", tally.mismatches},
                                   {"seed", options.seed},
                                   {"device", options.device}};
    std::cout << line.dump() << std::endl;
    return;
  }
  std::cout << tally.sequences << " sequences from seed " << options.seed << " on "
            << options.device << ": " << tally.steps << " calls, " << tally.refusals
            << " of them refused as they must be; " << tally.traced << " traced, of which "
            << tally.traces_refused << " refused; " << tally.mismatches.size() << " mismatches\n";
}

}  // namespace

int main(int argc, char** argv) {
  tenon::CommandLine line("Compares random sequences of tensor calls with a reference interpreter");
  Options options;
  line.option("--count", options.count, "sequences").positive();
  line.option("--seed", options.seed, "of all choices");
  line.option("--first", options.first, "number of the first sequence");
  line.option("--jobs", options.jobs, "processes").range(1, 256);
  line.option("--device", options.device, "where the tensors are").one_of({"cpu", "cuda"});
  line.option("--max-mismatches", options.max_mismatches, "a job stops after so many").positive();
  line.flag("--show", options.show, "print every sequence on stderr before it is run");
  line.flag("--json", options.json, "one JSON object on stdout; everything else on stderr");
  line.footer("Exit status: 0 all agree; 1 a mismatch; 2 an error.");
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    const Tally tally = run_all(options);
    report(options, tally);
    return tally.mismatches.empty() ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
