#include "benchmarks/measure.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "graph/profile.h"
#include "tensor/device_backend.h"
#include "tensor/functional.h"

namespace tenon::bench {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

constexpr int kFewestSteps = 3;  // lowering, and clocks that rise
constexpr double kWarmUpBudgetMs = 2000;
constexpr double kLatencyBudgetMs = 2000;  // for all single steps
constexpr double kQueueMs = 100;           // of one queue of steps
constexpr int kQueues = 5;

}  // namespace

void CommonOptions::add_to(CommandLine& line) {
  line.option("--device", device, "cpu, cuda, cuda:N or auto");
  line.option("--dtype", dtype, "of parameters and activations");
  line.option("--seed", seed, "of weights, inputs and dropout");
  line.flag("--json", json, "one JSON object on stdout");
}

void CommonOptions::add_profile_to(CommandLine& line) {
  line.option("--profile", profile,
              "writes a Chrome or Perfetto trace of one step to this file, and its tables to "
              "stderr");
}

Device CommonOptions::chosen_device() const {
  const Device chosen =
      device == "auto" ? (is_available(kCuda) ? kCuda : kCpu) : Device::parse(device);
  require_available(chosen);
  return chosen;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

StepTimes time_steps(Device device, int runs, std::int64_t turns,
                     const std::function<void(std::int64_t)>& step) {
  std::int64_t next = 0;
  const auto single = [&] {
    const auto start = Clock::now();
    step(next++);
    synchronize(device);
    return milliseconds_since(start);
  };
  double usual = 0;
  const auto start = Clock::now();
  // The second time that inputs come, their run is recorded; the third time the record is launched.
  while (next < kFewestSteps ||
         (next <= 2 * turns && milliseconds_since(start) < kWarmUpBudgetMs)) {
    usual = single();
  }
  const auto affordable = static_cast<int>(kLatencyBudgetMs / std::max(usual, 1e-3));
  std::vector<double> latencies;
  for (int i = 0; i < std::clamp(affordable, kFewestSteps, std::max(runs, kFewestSteps)); ++i) {
    latencies.push_back(single());
  }
  StepTimes times{.latency_ms = median(latencies)};
  const auto queued = std::clamp<std::int64_t>(
      static_cast<std::int64_t>(kQueueMs / std::max(times.latency_ms, 1e-3)), 2, 2000);
  std::vector<double> queues;
  for (int i = 0; i < kQueues; ++i) {
    const double ms = device_backend(device.type).time_ms(device.index, [&] {
      for (std::int64_t k = 0; k < queued; ++k) step(next++);
    });
    queues.push_back(ms / static_cast<double>(queued));
  }
  times.throughput_ms = median(queues);
  return times;
}

double eager_us_per_op(Device device, DType dtype) {
  constexpr int kCalls = 200;  // far below what a launch queue holds, so that none waits for room
  constexpr int kRounds = 20;
  const Tensor a = ones({1024}, {dtype, device});
  const Tensor b = ones({1024}, {dtype, device});
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    synchronize(device);
    const auto start = Clock::now();
    for (int i = 0; i < kCalls; ++i) add(a, b);
    rounds.push_back(milliseconds_since(start) * 1e3 / kCalls);
  }
  synchronize(device);
  return median(rounds);
}

SustainedRates sustained_rates(DType dtype) {
  const bool tensor_cores = dtype == DType::bfloat16 || dtype == DType::float16;
  return {.flops = tensor_cores ? 790e12 : 132 * 256 * 1.83e9};
}

double floor_ms(const Program& program, DType dtype) {
  const SustainedRates rates = sustained_rates(dtype);
  double seconds = 0;
  for (const InstructionInfo& info : program.instructions()) {
    seconds += std::max(info.flops / rates.flops, info.bytes / rates.bytes);
  }
  return seconds * 1e3;
}

std::int64_t rotation_length(std::size_t bytes_of_one_set) {
  constexpr std::size_t kBeyondCache = std::size_t{128}
                                       << 20;  // an H200's second level holds 50 MB
  const std::size_t wanted = kBeyondCache / std::max<std::size_t>(bytes_of_one_set, 1) + 1;
  return static_cast<std::int64_t>(std::clamp<std::size_t>(std::bit_ceil(wanted), 2, 8));
}

void profile_if_asked(const CommonOptions& options, Program& program,
                      std::span<const Tensor> inputs) {
  if (options.profile.empty()) return;
  const Profile times = profile(program, inputs);
  times.write_chrome_trace(options.profile);
  std::cerr << times.to_string();
}

void print(const nlohmann::ordered_json& figures, bool json) {
  if (json) {
    std::cout << figures.dump() << std::endl;
    return;
  }
  for (const auto& [name, value] : figures.items()) std::cout << name << " " << value << "\n";
}

int run_program(CommandLine& line, int argc, char** argv, const CommonOptions& options,
                const std::function<nlohmann::ordered_json()>& measure) {
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    print(measure(), options.json);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}

}  // namespace tenon::bench
