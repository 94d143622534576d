// Many threads at once, each value compared bit for bit with what one thread computed before: eager
// ops, Executors shared and not, training, builds, tensors handed over, allocations, copies.
//
//   stress_threads --threads 8 --seconds 60 [--device cuda] [--seed 7] [--json]
//
// Status 1 and the first difference on stderr when there is one.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "examples/command_line.h"
#include "tensor/device_backend.h"
#include "tests/fuzz/random_source.h"
#include "tests/threads/jobs.h"

namespace {

using namespace tenon;
using test::Job;

struct Options {
  std::string device = "cpu";
  int threads = 8;
  double seconds = 0;
  int rounds = 200;
  std::uint64_t seed = 1;
  bool json = false;
};

/// What the threads have in common.
class Run {
 public:
  explicit Run(const Options& options) : options_(options) {}

  /// True once: for the first difference.
  void report(int thread, const Job& job, int variant, const std::string& what) {
    if (failed_.exchange(true)) return;
    const std::lock_guard lock(mutex_);
    std::cerr << "MISMATCH in thread " << thread << ", " << job.name << ", variant " << variant
              << ": " << what << "\n";
  }

  void count(const std::map<std::string, std::uint64_t>& checks) {
    const std::lock_guard lock(mutex_);
    for (const auto& [name, number] : checks) checks_[name] += number;
  }

  bool goes_on(int rounds) const {
    if (failed_) return false;
    return options_.seconds > 0 ? seconds() < options_.seconds : rounds < options_.rounds;
  }

  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  bool failed() const { return failed_; }
  const std::map<std::string, std::uint64_t>& checks() const { return checks_; }
  std::atomic<std::uint64_t> done{0};
  std::atomic<int> working{0};

 private:
  const Options& options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::map<std::string, std::uint64_t> checks_;
};

/// The first byte where two results differ, and their lengths.
std::string difference(const std::string& got, const std::string& expected) {
  std::size_t i = 0;
  while (i < got.size() && i < expected.size() && got[i] == expected[i]) ++i;
  return "byte " + std::to_string(i) + " differs; " + std::to_string(got.size()) +
         " bytes, expected " + std::to_string(expected.size());
}

void work(Run& run, int thread, const std::vector<Job>& jobs, std::uint64_t seed) {
  fuzz::SplitMix64 source(seed, static_cast<std::uint64_t>(thread));
  std::vector<int> next(jobs.size(), 0);  // of ordered jobs
  std::map<std::string, std::uint64_t> checks;
  for (int round = 0; run.goes_on(round); ++round) {
    const auto k = static_cast<std::size_t>(source.below(jobs.size()));
    const Job& job = jobs[k];
    const int variant =
        job.ordered ? next[k]
                    : static_cast<int>(source.below(static_cast<std::uint64_t>(job.variants)));
    next[k] = (variant + 1) % job.variants;
    try {
      const std::string got = job.run(variant);
      const std::string& expected = job.expected[static_cast<std::size_t>(variant)];
      if (got != expected) run.report(thread, job, variant, difference(got, expected));
    } catch (const std::exception& error) {
      run.report(thread, job, variant, error.what());
    }
    ++checks[job.name];
    ++run.done;
  }
  run.count(checks);
  --run.working;
}

std::vector<std::vector<Job>> make_jobs(const Options& options) {
  const Device device = Device::parse(options.device);
  require_available(device);
  std::vector<Job> shared = test::shared_jobs(device, options.seed);
  for (Job& job : shared) test::compute_references(job);
  const auto queue = std::make_shared<test::ParcelQueue>();
  std::vector<std::vector<Job>> jobs;
  for (int thread = 0; thread < options.threads; ++thread) {
    jobs.push_back(test::own_jobs(device, options.seed, thread, queue));
    for (Job& job : jobs.back()) test::compute_references(job);
    jobs.back().insert(jobs.back().end(), shared.begin(), shared.end());
    std::cerr << "references of thread " << thread + 1 << " of " << options.threads << "\n";
  }
  return jobs;
}

int stress(const Options& options) {
  const auto jobs = make_jobs(options);
  Run run(options);
  run.working = options.threads;
  std::vector<std::thread> threads;
  for (int i = 0; i < options.threads; ++i) {
    threads.emplace_back([&, i] { work(run, i, jobs[static_cast<std::size_t>(i)], options.seed); });
  }
  for (double next = 1; run.working > 0;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    if (run.seconds() < next) continue;
    std::fprintf(stderr, "%.0f s, %llu checks\n", run.seconds(),
                 static_cast<unsigned long long>(run.done.load()));
    next *= next < 8 ? 2 : 1.25;
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = run.seconds();
  if (options.json) {
    const nlohmann::ordered_json line = {
        {"device", options.device}, {"threads", options.threads},
        {"seed", options.seed},     {"mismatches", run.failed() ? 1 : 0},
        {"seconds", seconds},       {"checks", run.done.load()},
        {"by_job", run.checks()}};
    std::cout << line.dump() << std::endl;
  } else {
    for (const auto& [name, number] : run.checks())
      std::printf("%8llu  %s\n", static_cast<unsigned long long>(number), name.c_str());
    std::printf("%llu checks in %.1f s by %d threads: %s\n",
                static_cast<unsigned long long>(run.done.load()), seconds, options.threads,
                run.failed() ? "a difference" : "all bits equal");
  }
  return run.failed() ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CommandLine line("Many threads at once, each result compared with that of one thread");
  line.option("--device", options.device, "where tensors are: cpu or cuda");
  line.option("--threads", options.threads, "threads that work at once").range(1, 256);
  line.option("--seconds", options.seconds, "how long; 0: --rounds counts");
  line.option("--rounds", options.rounds, "pieces of work a thread").positive();
  line.option("--seed", options.seed, "which values, and who does what when");
  line.flag("--json", options.json, "one JSON object on stdout");
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    return stress(options);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
