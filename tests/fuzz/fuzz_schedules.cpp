// Random models under random legal schedules: each pair compares the plain model, run eagerly, with
// the scheduled Programs, forward, backward and masks, and on half of the pairs what verification
// says of the rewritten regions with what it says of the whole model.
//
//   fuzz_schedules --pairs 2000 --seed 7 [--jobs 2] [--first 0] [--json]
//
// A mismatch prints the model, the schedule and the command that repeats it.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/command_line.h"
#include "tensor/functional.h"
#include "tensor/parallel.h"
#include "tests/fuzz/pair.h"
#include "tests/fuzz/workers.h"

namespace {

using tenon::fuzz::PairResult;

struct Options {
  std::uint64_t pairs = 2000;
  std::uint64_t seed = 1;
  std::uint64_t first = 0;
  int jobs = 1;
  bool json = false;
};

struct Tally {
  std::uint64_t pairs = 0;
  std::uint64_t mismatches = 0;
  std::uint64_t with_three = 0;
  std::map<std::string, std::uint64_t> applied;
};

void to_json(nlohmann::json& json, const Tally& t) {
  json = {{"pairs", t.pairs},
          {"mismatches", t.mismatches},
          {"with_three", t.with_three},
          {"applied", t.applied}};
}

void from_json(const nlohmann::json& json, Tally& t) {
  json.at("pairs").get_to(t.pairs);
  json.at("mismatches").get_to(t.mismatches);
  json.at("with_three").get_to(t.with_three);
  json.at("applied").get_to(t.applied);
}

void print_mismatch(const Options& options, std::uint64_t index, const PairResult& result) {
  std::string text =
      "\nMISMATCH in pair " + std::to_string(index) + "\nmodel: " + result.program + "schedule:\n";
  for (const std::string& step : result.steps) text += "  " + step + "\n";
  text += result.mismatch + "\nrepeat: fuzz_schedules --seed " + std::to_string(options.seed) +
          " --first " + std::to_string(index) + " --pairs 1\n";
  std::cerr << text << std::flush;
}

/// Every jobs-th pair, from `job` on.
Tally run_share(const Options& options, int job) {
  tenon::set_num_threads(1);
  Tally tally;
  const std::uint64_t report_every = std::max<std::uint64_t>(1, options.pairs / 20);
  for (auto i = static_cast<std::uint64_t>(job); i < options.pairs;
       i += static_cast<std::uint64_t>(options.jobs)) {
    const std::uint64_t index = options.first + i;
    tenon::fuzz::SplitMix64 source(options.seed, index);
    const PairResult result = tenon::fuzz::run_pair(source, tenon::fuzz::options_of_pair(index));
    ++tally.pairs;
    tally.with_three += result.num_applied >= 3;
    for (const auto& [primitive, times] : result.applied) {
      tally.applied[primitive] += static_cast<std::uint64_t>(times);
    }
    if (!result.mismatch.empty()) {
      ++tally.mismatches;
      print_mismatch(options, index, result);
    }
    if (i > 0 && i % report_every == 0) {
      std::fprintf(stderr, "pair %llu of %llu\n", static_cast<unsigned long long>(i),
                   static_cast<unsigned long long>(options.pairs));
    }
  }
  return tally;
}

Tally run_jobs(const Options& options) {
  Tally sum;
  for (const std::string& text : tenon::fuzz::run_jobs(
           options.jobs, [&](int job) { return nlohmann::json(run_share(options, job)).dump(); })) {
    const Tally tally = nlohmann::json::parse(text).get<Tally>();
    sum.pairs += tally.pairs;
    sum.mismatches += tally.mismatches;
    sum.with_three += tally.with_three;
    for (const auto& [primitive, times] : tally.applied) sum.applied[primitive] += times;
  }
  return sum;
}

void report(const Options& options, const Tally& tally) {
  const double share = static_cast<double>(tally.with_three) /
                       static_cast<double>(std::max<std::uint64_t>(tally.pairs, 1));
  if (options.json) {
    const nlohmann::ordered_json line = {{"pairs", tally.pairs},
                                         {"mismatches", tally.mismatches},
                                         {"seed", options.seed},
                                         {"applied", tally.applied},
                                         {"share_with_3_or_more", share}};
    std::cout << line.dump() << std::endl;
    return;
  }
  std::cout << tally.pairs << " pairs from seed " << options.seed << ", " << tally.mismatches
            << " mismatches; three or more primitives in " << share * 100 << "%\n";
  for (const auto& [primitive, times] : tally.applied) {
    std::cout << "  " << primitive << " " << times << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  tenon::CommandLine line("Compares random models with random schedules of them");
  Options options;
  line.option("--pairs", options.pairs, "models, each with a schedule").positive();
  line.option("--seed", options.seed, "of all choices");
  line.option("--first", options.first, "number of the first pair");
  line.option("--jobs", options.jobs, "processes").range(1, 256);
  line.flag("--json", options.json, "one JSON object on stdout; everything else on stderr");
  line.footer("Exit status: 0 all agree; 1 a mismatch; 2 an error.");
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    std::ostream nowhere(nullptr);  // what the print primitive writes
    tenon::set_print_stream(&nowhere);
    const Tally tally = run_jobs(options);
    report(options, tally);
    return tally.mismatches == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
