// Training of GPT-2 (124M parameters by default) as the Program that its ready-made schedule builds:
// forward, backward, clipping at norm 1 and AdamW, parameters in --dtype with float32 master weights.
//
//   bench_gpt2 --batch 4 --seq 1024 --steps 50 --json
//   bench_gpt2 --data text.txt --dump-weights FOLDER    # for the same run elsewhere
//
// First --steps single steps, each waited for and its loss read: ms_median is their median without the
// first five, tokens_per_s follows from it. Then steps back to back by the device's clock:
// ms_back_to_back. mfu is flops_per_token·tokens_per_s over 989.5 TFLOP/s, with 6·N + 12·L·H·S operations
// a token (benchmarks/gpt2_model.h). first_step_s is from the start of the process to the end of the
// first step. By default backward makes the results of norms and activations again: --recompute none
// keeps them, which is 1% faster and takes 3.6 GB more at 32x1024. With --verify the schedule is compared
// with the model after all that, in verify_s.
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "benchmarks/gpt2_model.h"
#include "benchmarks/measure.h"
#include "benchmarks/token_stream.h"
#include "nn/checkpoint.h"
#include "schedule/schedules.h"
#include "schedule/training.h"
#include "schedule/verification.h"
#include "tensor/device_backend.h"

namespace {

using namespace tenon;
using nlohmann::ordered_json;

constexpr double kPeakFlops = 989.5e12;  // H200, dense bfloat16, 132 SMs at 1.83 GHz
constexpr double kLearningRate = 6e-4;
constexpr std::int64_t kWarmUpSteps = 10;   // over which the learning rate rises to that
constexpr std::int64_t kSettlingSteps = 5;  // lowering and recording, which ms_median leaves out

struct Options : bench::CommonOptions {
  bench::Gpt2Options model;
  std::int64_t batch = 4;
  std::int64_t seq = 1024;
  std::int64_t steps = 50;
  std::string schedule = "full";
  std::string recompute = "activations";
  std::string data;
  std::string dump_weights;
  bool verify = false;
};

void add_options(CommandLine& line, Options& o) {
  line.option("--batch", o.batch, "sequences").positive();
  line.option("--seq", o.seq, "their length, which is the model's context").positive();
  line.option("--layers", o.model.layers, "blocks").positive();
  line.option("--hidden", o.model.hidden, "hidden size").positive();
  line.option("--heads", o.model.heads, "attention heads").positive();
  line.option("--vocabulary", o.model.vocabulary,
              "tokens; the table is padded to a multiple of 128")
      .positive();
  line.option("--steps", o.steps, "training steps, each waited for").positive();
  line.option("--schedule", o.schedule, "none or full (schedules::gpt)").one_of({"none", "full"});
  line.option("--recompute", o.recompute,
              "what backward computes again, with the full schedule: none, or the results of norms "
              "and activations (activations)")
      .one_of({"none", "activations"});
  line.option("--data", o.data,
              "tokens: .bin holds 16-bit numbers, of any other file each byte is one; random "
              "numbers when not given")
      .existing_file();
  line.option("--dump-weights", o.dump_weights,
              "writes the initial weights to weights.json in this folder (nn/checkpoint.h)");
  line.flag("--verify", o.verify, "compare with the unscheduled model, after the timing");
  o.add_profile_to(line);
  o.add_to(line);
}

/// Seconds since the kernel started this process: the dynamic linker's work counts.
double process_seconds() {
  std::ifstream file("/proc/self/stat");
  std::string text{std::istreambuf_iterator<char>(file), {}};
  std::istringstream fields(text.substr(text.rfind(')') + 2));  // behind the program's name
  constexpr int kStartTime = 22 - 3;  // proc(5) counts from 1; two fields are cut off
  std::string field;
  for (int i = 0; i <= kStartTime; ++i) fields >> field;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double started = std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 - started;
}

class Training {
 public:
  explicit Training(const Options& options)
      : o_(options),
        device_(options.chosen_device()),
        dtype_(parse_dtype(options.dtype)),
        stream_(o_.data.empty() ? bench::TokenStream::random(8 * o_.batch * o_.seq + 1,
                                                             o_.model.vocabulary, o_.seed)
                                : bench::TokenStream::read(o_.data, o_.model.vocabulary)) {
    o_.model.context = o_.seq;
    model_ = nn::make<bench::Gpt2>(o_.model);
    model_->initialize(o_.seed);
    model_->to(device_, dtype_);
    model_->requires_grad_();
    manual_seed(o_.seed);
    if (!o_.dump_weights.empty()) dump_weights();
    optimizer_ = std::make_shared<nn::AdamW>(model_->named_parameters(),
                                             nn::AdamWOptions{.lr = kLearningRate,
                                                              .beta2 = 0.95,
                                                              .weight_decay = 0.1,
                                                              .no_decay = {"*.bias", "*norm*"}},
                                             nn::OptimizerOptions{.max_grad_norm = 1.0});
  }

  ordered_json run() {
    build();
    single_steps();
    const double back_to_back = time_queue();
    DeviceBackend& backend = device_backend(device_.type);
    const std::size_t peak = backend.memory_stats(device_.index).peak;
    const std::vector<Tensor> inputs = batch(0);
    Program& program = step_->program(inputs);
    bench::profile_if_asked(o_, program, inputs);
    const double tokens = static_cast<double>(o_.batch * o_.seq);
    const double step_ms = median_of_settled();
    const double tokens_per_s = tokens / step_ms * 1e3;
    return {{"device", backend.device_name(device_.index)},
            {"dtype", name(dtype_)},
            {"batch", o_.batch},
            {"seq", o_.seq},
            {"layers", o_.model.layers},
            {"hidden", o_.model.hidden},
            {"schedule", o_.schedule},
            {"recompute", o_.recompute},
            {"ms_median", step_ms},
            {"ms_back_to_back", back_to_back},
            {"tokens_per_s", tokens_per_s},
            {"mfu", model_->flops_per_token(o_.seq) * tokens_per_s / kPeakFlops},
            {"floor_ms", bench::floor_ms(program, dtype_)},
            {"peak_bytes", peak},
            {"arena_bytes", program.arena_bytes()},
            {"live_bound_bytes", program.live_bound_bytes()},
            {"first_step_s", first_step_s_},
            {"build_ms", build_ms_},
            {"verify_s", o_.verify ? ordered_json(verified_seconds()) : ordered_json()},
            {"loss", losses_.back()},
            {"losses", losses_},
            {"kernels", program.count_kernels(inputs)}};
  }

 private:
  void dump_weights() const {
    nn::Checkpoint checkpoint;
    checkpoint.metadata.set("producer", "bench_gpt2");
    checkpoint.config.set("layers", o_.model.layers);
    checkpoint.config.set("hidden", o_.model.hidden);
    checkpoint.config.set("heads", o_.model.heads);
    checkpoint.config.set("context", o_.model.context);
    checkpoint.config.set("vocabulary", o_.model.padded_vocabulary());
    for (const auto& [name, tensor] : model_->named_parameters()) {
      checkpoint.tensors.add(name, tensor.detach().cpu().to(DType::float32));
    }
    std::filesystem::create_directories(o_.dump_weights);
    nn::save_checkpoint(std::filesystem::path(o_.dump_weights) / "weights.json", checkpoint);
  }

  void build() {
    const auto start = std::chrono::steady_clock::now();
    const std::vector<Tensor> example = batch(0);
    schedule_.emplace(create_schedule(model_, {{"tokens", example[0]}, {"targets", example[1]}}));
    if (o_.schedule == "full") {
      for (const std::string& reason : schedules::gpt(*schedule_).refused) {
        std::cerr << "not rewritten: " << reason << "\n";
      }
      if (o_.recompute == "activations") discard_activations();
    }
    step_.emplace(build_training(*schedule_, {.optimizer = optimizer_, .verify = false}));
    step_->program(example);
    build_ms_ =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }

  /// Backward makes them again from what it reads anyway, at a few reads and writes.
  void discard_activations() {
    const auto is_cheap = [](const Node& node) {
      return node.op->name == "layer_norm" || node.op->name == "linear_gelu";
    };
    schedule_->checkpoint(schedule_->find(is_cheap), {.keep_results = false});
  }

  std::vector<Tensor> batch(std::int64_t step) const {
    const bench::TokenBatch tokens = stream_.batch(step, o_.batch, o_.seq);
    return {tokens.inputs.to(device_), tokens.targets.to(device_)};
  }

  void single_steps() {
    for (std::int64_t i = 0; i < o_.steps; ++i) {
      const std::vector<Tensor> inputs = batch(i);
      synchronize(device_);
      const auto start = std::chrono::steady_clock::now();
      if (i <= kWarmUpSteps) {
        const auto part = static_cast<double>(i + 1) / static_cast<double>(kWarmUpSteps);
        optimizer_->set_lr(kLearningRate * std::min(part, 1.0));
      }
      const TrainingResult result = step_->run(inputs);
      losses_.push_back(result.loss.item());
      synchronize(device_);
      step_ms_.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
              .count());
      if (i == 0) first_step_s_ = process_seconds();
    }
  }

  double median_of_settled() const {
    const auto settled =
        std::min<std::ptrdiff_t>(kSettlingSteps, static_cast<std::ptrdiff_t>(step_ms_.size()) - 1);
    return bench::median({step_ms_.begin() + settled, step_ms_.end()});
  }

  /// Milliseconds a step, of about half a second of steps on batches that take turns.
  double time_queue() {
    std::vector<std::vector<Tensor>> batches;
    for (std::int64_t i = 0; i < 4; ++i) batches.push_back(batch(i));
    const auto count = std::clamp<std::int64_t>(
        static_cast<std::int64_t>(500 / std::max(median_of_settled(), 1e-3)), 4, 200);
    const auto queue = [&](std::int64_t steps) {
      for (std::int64_t i = 0; i < steps; ++i) step_->run(batches[static_cast<std::size_t>(i % 4)]);
    };
    queue(o_.steps < 4 ? 0 : 8);  // records a graph for each batch
    const double ms = device_backend(device_.type).time_ms(device_.index, [&] { queue(count); });
    return ms / static_cast<double>(count);
  }

  double verified_seconds() const {
    const VerifyReport report = verify(*schedule_);
    if (!report.ok()) throw VerificationError(report.to_string());
    return report.milliseconds * 1e-3;
  }

  Options o_;
  Device device_;
  DType dtype_;
  bench::TokenStream stream_;
  nn::Child<bench::Gpt2> model_;
  std::shared_ptr<nn::AdamW> optimizer_;
  std::optional<Schedule> schedule_;
  std::optional<TrainingStep> step_;
  std::vector<double> losses_;
  std::vector<double> step_ms_;
  double build_ms_ = 0;
  double first_step_s_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times training steps of GPT-2");
  Options options;
  add_options(line, options);
  return bench::run_program(line, argc, argv, options, [&] { return Training(options).run(); });
}
