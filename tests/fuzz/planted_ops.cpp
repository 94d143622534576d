// Faults planted between fuzz_ops and Tenon, each of a kind that stood in Tenon once or in one of
// its peers, which the fuzzer must find: a fault counts as found when a sequence has a mismatch
// with it and none without it.
//
//   planted_ops [--count 20000] [--seed 1] [--device cuda] [--filter TEXT] [--json]
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "examples/command_line.h"
#include "tensor/parallel.h"
#include "tests/fuzz/ops/planted_faults.h"
#include "tests/fuzz/ops/trial.h"

namespace {

using namespace tenon::op_fuzz;

struct Options {
  std::uint64_t count = 20000;
  std::uint64_t seed = 1;
  std::string device = "cpu";
  std::string filter;
  bool json = false;
};

struct Found {
  std::string name;
  std::uint64_t sequences = 0;  // until it was found
  std::string mismatch;         // empty: it was not
};

void to_json(nlohmann::ordered_json& json, const Found& found) {
  json = {{"name", found.name}, {"sequences", found.sequences}, {"mismatch", found.mismatch}};
}

bool calls(const Program& program, const std::string& name) {
  return std::any_of(program.steps.begin(), program.steps.end(),
                     [&](const Step& step) { return step.call->name == name; });
}

Found search(const PlantedFault& fault, const Options& options) {
  const tenon::Device device = tenon::Device::parse(options.device);
  const Overrides overrides{{fault.call, fault.run}};
  Found found{fault.name, 0, ""};
  for (std::uint64_t i = 0; i < options.count; ++i) {
    tenon::fuzz::SplitMix64 source(options.seed, i);
    const Program program = draw_program(source, !device.is_cpu());
    ++found.sequences;
    if (!calls(program, fault.call)) continue;
    const TrialOptions planted{device, &overrides};
    if (run_trial(program, planted).mismatch.empty()) continue;
    if (!run_trial(program, {device, nullptr}).mismatch.empty()) continue;
    const Program smallest = shrunk(program, planted);
    found.mismatch = smallest.to_string() + run_trial(smallest, planted).mismatch;
    return found;
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  tenon::CommandLine line("Plants faults between fuzz_ops and Tenon, which it must find");
  Options options;
  line.option("--count", options.count, "sequences for each fault at most").positive();
  line.option("--seed", options.seed, "of all choices");
  line.option("--device", options.device, "where the tensors are").one_of({"cpu", "cuda"});
  line.option("--filter", options.filter, "only faults whose name contains this");
  line.flag("--json", options.json, "one JSON object on stdout; everything else on stderr");
  line.footer("Exit status: 0 all are found; 1 one is not; 2 an error.");
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    tenon::set_num_threads(1);
    std::ostream& out = options.json ? std::cerr : std::cout;
    std::vector<Found> results;
    for (const PlantedFault& fault : planted_faults()) {
      if (std::string(fault.name).find(options.filter) == std::string::npos) continue;
      if (fault.on_host_only && options.device != "cpu") continue;
      results.push_back(search(fault, options));
      const Found& found = results.back();
      out << (found.mismatch.empty() ? "MISSED " : "found  ") << found.name << ", after "
          << found.sequences << " sequences\n";
    }
    const auto missed = std::count_if(results.begin(), results.end(),
                                      [](const Found& found) { return found.mismatch.empty(); });
    const auto planted = static_cast<std::ptrdiff_t>(results.size());
    if (options.json) {
      const nlohmann::ordered_json object = {
          {"planted", planted}, {"found", planted - missed}, {"results", results}};
      std::cout << object.dump() << std::endl;
    } else {
      out << planted - missed << " of " << planted << " found\n";
    }
    return missed == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
