// The attention block of the tutorial, forward or forward and backward, as the Program that its
// ready-made schedule builds.
//
//   bench_attention --batch 8 --seq 512 --mode train --dropout 0.1 --json
//
// fwd: evaluation mode. train: training mode, from a given gradient of the output to those of every
// parameter and of the input. kernels are those of one step; tflops counts the block's products and
// attention alone, 8·B·S·H² + 4·B·S²·H forward and 24·B·S·H² + 14·B·S²·H with backward, per step of
// throughput_ms; floor_ms is the floor of this Program's instructions (bench::floor_ms). build_ms is
// from the trace to the lowered Program, verification not counted.
//
//   bench_attention --batch 1 --seq 128 --threads 2
//
// --threads N: N threads at once, each with a model and an Executor of its own, against one of them
// alone, in turns: steps_per_s of all together, and of the one.
#include <barrier>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "benchmarks/attention_block.h"
#include "benchmarks/measure.h"
#include "schedule/joint_graph.h"
#include "schedule/rewriting/state.h"
#include "schedule/schedules.h"
#include "schedule/verification.h"
#include "tensor/device_backend.h"

namespace {

using namespace tenon;
using nlohmann::ordered_json;

struct Options : bench::CommonOptions {
  std::int64_t batch = 8;
  std::int64_t seq = 512;
  bench::AttentionBlockOptions block;
  std::string mode = "fwd";
  std::string schedule = "full";
  int runs = 50;
  int threads = 0;  // 0: the usual figures
  bool verify = false;

  bool trains() const { return mode == "train"; }
};

void add_options(CommandLine& line, Options& o) {
  line.option("--batch", o.batch, "sequences").positive();
  line.option("--seq", o.seq, "their length").positive();
  line.option("--hidden", o.block.hidden, "hidden size").positive();
  line.option("--heads", o.block.heads, "attention heads").positive();
  line.option("--dropout", o.block.dropout, "probability, in training").probability();
  line.option("--mode", o.mode, "fwd or train").one_of({"fwd", "train"});
  line.option("--schedule", o.schedule, "none or full (schedules::transformer_encoder)")
      .one_of({"none", "full"});
  line.option("--runs", o.runs, "single steps of which the median counts").positive();
  line.option("--threads", o.threads, "measure this many threads at once").positive();
  line.flag("--verify", o.verify, "compare with the unscheduled model first");
  o.add_profile_to(line);
  o.add_to(line);
}

/// What a step runs: the forward Graph, or the one with gradients, whose inputs are x and the gradient
/// of the output.
Executor make_executor(const Schedule& sch, bool trains) {
  if (!trains) return build(sch, {.verify = false});
  GradientGraph gradients = differentiate(sch.graph(), detail::state_tree(sch));
  pack_parameters(sch.graph());
  return Executor(std::move(gradients.graph));
}

double model_flops(const Options& o) {
  const auto tokens = static_cast<double>(o.batch * o.seq);
  const auto hidden = static_cast<double>(o.block.hidden);
  const double products = 8 * tokens * hidden * hidden;
  const double attention = 4 * tokens * static_cast<double>(o.seq) * hidden;
  return o.trains() ? 3 * products + 3.5 * attention : products + attention;
}

/// Sets of inputs, on the device: x and, to train, the gradient of the output.
std::vector<std::vector<Tensor>> make_inputs(const Options& o, Device device, DType dtype) {
  const Shape shape{o.batch, o.seq, o.block.hidden};
  const auto elements = static_cast<std::size_t>(shape.numel().value());
  const std::size_t per_set = o.trains() ? 2 : 1;
  std::vector<std::vector<Tensor>> sets(static_cast<std::size_t>(
      bench::rotation_length(per_set * elements * static_cast<std::size_t>(size_of(dtype)))));
  Generator generator(o.seed + 1);
  for (auto& set : sets) {
    for (std::size_t i = 0; i < per_set; ++i) {
      set.push_back(randn(shape, {dtype, kCpu}, &generator).to(device));
    }
  }
  return sets;
}

/// A model of its own, scheduled, with inputs.
struct Worker {
  Worker(const Options& o, Device device, DType dtype)
      : model(nn::make<bench::AttentionBlock>(o.block)), inputs(make_inputs(o, device, dtype)) {
    model->to(device, dtype);
    model->requires_grad_();
    model->train(o.trains());
    Schedule sch = create_schedule(model, {{"x", inputs[0][0]}});
    if (o.schedule == "full") schedules::transformer_encoder(sch);
    executor.emplace(make_executor(sch, o.trains()));
  }

  void run(int steps, bool trains) {
    for (int i = 1; i < steps; ++i) {
      executor->run(inputs[static_cast<std::size_t>(i) % inputs.size()], trains);
    }
    executor->run(inputs[0], trains)[0].to(kCpu);  // waits for this thread's work alone
  }

  nn::Child<bench::AttentionBlock> model;
  std::vector<std::vector<Tensor>> inputs;
  std::optional<Executor> executor;
};

/// Steps a second of the first `count` workers together, each on a thread.
double steps_per_second(std::span<Worker> workers, std::size_t count, const Options& o) {
  const int steps = 40 * o.runs;
  std::chrono::steady_clock::time_point start;
  std::barrier ready(static_cast<std::ptrdiff_t>(count),
                     [&]() noexcept { start = std::chrono::steady_clock::now(); });
  std::vector<std::thread> threads;
  for (Worker& worker : workers.first(count)) {
    threads.emplace_back([&] {
      const NoGradGuard no_grad;
      worker.run(3 * static_cast<int>(worker.inputs.size()), o.trains());  // recorded by then
      ready.arrive_and_wait();
      worker.run(steps, o.trains());
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  return static_cast<double>(count) * steps / taken.count();
}

ordered_json measure_threads(const Options& o) {
  const Device device = o.chosen_device();
  const DType dtype = parse_dtype(o.dtype);
  manual_seed(o.seed);
  std::vector<Worker> workers;
  for (int i = 0; i < o.threads; ++i) workers.emplace_back(o, device, dtype);
  std::vector<double> alone, together;
  for (int turn = 0; turn < 5; ++turn) {
    alone.push_back(steps_per_second(workers, 1, o));
    together.push_back(steps_per_second(workers, workers.size(), o));
  }
  return {{"device", device_backend(device.type).device_name(device.index)},
          {"dtype", name(dtype)},
          {"batch", o.batch},
          {"seq", o.seq},
          {"mode", o.mode},
          {"threads", o.threads},
          {"steps_per_s", bench::median(together)},
          {"steps_per_s_of_one", bench::median(alone)},
          {"ratio", bench::median(together) / bench::median(alone)}};
}

ordered_json measure(const Options& o) {
  if (o.threads > 0) return measure_threads(o);
  const Device device = o.chosen_device();
  const DType dtype = parse_dtype(o.dtype);
  DeviceBackend& backend = device_backend(device.type);
  manual_seed(o.seed);
  const auto model = nn::make<bench::AttentionBlock>(o.block);
  model->to(device, dtype);
  model->requires_grad_();
  model->train(o.trains());
  const auto inputs = make_inputs(o, device, dtype);

  const auto start = std::chrono::steady_clock::now();
  Schedule sch = create_schedule(model, {{"x", inputs[0][0]}});
  if (o.schedule == "full") {
    for (const std::string& reason : schedules::transformer_encoder(sch).refused) {
      std::cerr << "not rewritten: " << reason << "\n";
    }
  }
  Executor executor = make_executor(sch, o.trains());
  Program& program = executor.program(inputs[0], o.trains());
  const std::chrono::duration<double, std::milli> build = std::chrono::steady_clock::now() - start;

  ordered_json verify_ms;
  if (o.verify) {
    const VerifyReport report = verify(sch);
    if (!report.ok()) throw VerificationError(report.to_string());
    verify_ms = report.milliseconds;
  }
  backend.reset_peak(device.index);
  const auto turns = static_cast<std::int64_t>(inputs.size());
  const bench::StepTimes times = bench::time_steps(device, o.runs, turns, [&](std::int64_t i) {
    executor.run(inputs[static_cast<std::size_t>(i % turns)], o.trains());
  });
  const std::size_t peak = backend.memory_stats(device.index).peak;
  bench::profile_if_asked(o, program, inputs[0]);
  return {{"device", backend.device_name(device.index)},
          {"dtype", name(dtype)},
          {"batch", o.batch},
          {"seq", o.seq},
          {"hidden", o.block.hidden},
          {"heads", o.block.heads},
          {"dropout", o.block.dropout},
          {"mode", o.mode},
          {"schedule", o.schedule},
          {"latency_ms", times.latency_ms},
          {"throughput_ms", times.throughput_ms},
          {"kernels", program.count_kernels(inputs[0])},
          {"tflops", model_flops(o) / times.throughput_ms * 1e-9},
          {"floor_ms", bench::floor_ms(program, dtype)},
          {"arena_bytes", program.arena_bytes()},
          {"live_bound_bytes", program.live_bound_bytes()},
          {"peak_bytes", peak},
          {"build_ms", build.count()},
          {"verify_ms", verify_ms},
          {"eager_us_per_op", bench::eager_us_per_op(device, dtype)}};
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times the tutorial's attention block");
  Options options;
  add_options(line, options);
  return bench::run_program(line, argc, argv, options, [&] { return measure(options); });
}
