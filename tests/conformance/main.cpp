// conformance: runs a folder of operator cases and prints what differs.
//
//   bin/conformance tests/conformance/cases --device cuda --filter 'softmax|gelu.*float32'
//
// Exit status: 0 when nothing failed, 1 when a case failed, 2 for a wrong command line or
// unreadable files.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <regex>

#include "examples/command_line.h"
#include "tensor/device_backend.h"
#include "tests/conformance/conformance.h"

namespace {

using namespace tenon::conformance;

struct Options {
  std::string folder;
  std::string device = "cpu";
  std::string filter;
  bool json = false;
};

/// One JSON object on stdout.
void print_json(const std::vector<Outcome>& outcomes, const std::string& device,
                const std::vector<int>& counts) {
  nlohmann::json result = {{"device", device},
                           {"passed", counts[0]},
                           {"failed", counts[1]},
                           {"skipped", counts[2]},
                           {"failures", nlohmann::json::array()},
                           {"skips", nlohmann::json::array()}};
  for (const Outcome& outcome : outcomes) {
    if (outcome.status == Status::passed) continue;
    result[outcome.status == Status::failed ? "failures" : "skips"].push_back(
        {{"case", outcome.name}, {"reason", outcome.reason}});
  }
  std::printf("%s\n",
              result.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

int run(const Options& options) {
  const tenon::Device device = tenon::Device::parse(options.device);
  tenon::require_available(device);
  const std::regex filter(options.filter);
  std::vector<Outcome> outcomes;
  std::vector<int> counts(3, 0);
  std::FILE* text = options.json ? stderr : stdout;
  for (const CaseFile& file : read_cases(options.folder)) {
    for (const nlohmann::json& test_case : file.cases) {
      if (!std::regex_search(case_name(file.op, test_case), filter)) continue;
      outcomes.push_back(run_case(file.op, test_case, device));
      const Outcome& outcome = outcomes.back();
      ++counts[static_cast<std::size_t>(outcome.status)];
      if (outcome.status == Status::passed) continue;
      std::fprintf(text, "%s %s: %s\n", outcome.status == Status::failed ? "FAIL" : "skip",
                   outcome.name.c_str(), outcome.reason.c_str());
    }
  }
  if (options.json) print_json(outcomes, options.device, counts);
  std::fprintf(text, "%d passed, %d failed, %d skipped\n", counts[0], counts[1], counts[2]);
  return counts[1] > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  tenon::CommandLine line(
      "Runs operator conformance cases (one JSON file per op) and compares Tenon's outputs and "
      "gradients with the expected ones. A case whose op or option Tenon does not have is skipped, "
      "with the reason.");
  line.option("DIR", options.folder, "Folder of case files").required();
  line.option("--device", options.device, "cpu, cuda or cuda:N");
  line.option("--filter", options.filter, "Only cases whose op/name this regular expression finds");
  line.flag("--json", options.json, "One JSON object on stdout, everything else on stderr");
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "conformance: %s\n", error.what());
    return 2;
  }
}
