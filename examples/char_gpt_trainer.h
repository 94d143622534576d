// The training run behind train_char_gpt: data, model, schedule, Program, checkpoints and reports.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>

#include "examples/char_text.h"
#include "examples/gpt_model.h"
#include "examples/training_log.h"
#include "graph/executor.h"
#include "schedule/training.h"
#include "tensor/error.h"

namespace gpt {

struct TrainerOptions {
  std::string text;
  std::string out = "train_char_gpt.out";
  bool resume = false;
  std::string device = "auto";
  std::string dtype = "float32";
  std::string schedule = "full";
  std::uint64_t seed = 0;
  std::int64_t steps = 1000;
  std::int64_t batch = 16;
  std::int64_t seq = 64;
  std::int64_t layers = 2;
  std::int64_t hidden = 128;
  std::int64_t heads = 4;
  double dropout = 0;
  double lr = 2e-3;
  std::int64_t save_every = 250;
  std::int64_t sample = 400;
  std::string profile;
  bool json = false;

  bool is_terminal = false;
  /// Whether the user gave an option, by name; what was given may not contradict a checkpoint.
  std::function<bool(const std::string& name)> is_given = [](const std::string&) { return false; };
  /// Asked after every step; true ends the run with a checkpoint.
  std::function<bool()> stop = [] { return false; };
};

struct TrainingSummary {
  bool interrupted = false;
  std::int64_t steps = 0;
  double val_loss = 0;
  double bigram_val_loss = 0;
  double tokens_per_s = 0;
};

/// The loss was NaN or infinite; the last checkpoint is as it was.
class NonFiniteLoss : public tenon::Error {
 public:
  using tenon::Error::Error;
};

class Trainer {
 public:
  /// Reads the text and, to resume, the checkpoint. ValueError, CheckpointError or ModuleError.
  Trainer(TrainerOptions options, std::ostream& out);
  TrainingSummary run();

 private:
  void read_settings(const tenon::nn::Checkpoint& checkpoint);
  void make_model();
  void restore(const tenon::nn::Checkpoint& checkpoint);
  void build();
  bool train();
  StepRecord train_step(std::int64_t step);
  double validation_loss();
  void save();
  void write_sample();
  void write_profile();
  std::string first_non_finite(const Batch& batch);

  TrainerOptions options_;
  std::ostream& out_;
  tenon::Device device_;
  tenon::DType dtype_;
  std::unique_ptr<CharText> text_;
  double bigram_loss_ = 0;
  tenon::nn::Child<Gpt> model_;
  std::shared_ptr<tenon::nn::AdamW> optimizer_;
  std::optional<tenon::TrainingStep> step_;
  std::unique_ptr<tenon::Executor> forward_;  // logits, in evaluation mode
  std::unique_ptr<MetricsLog> metrics_;
  std::int64_t steps_done_ = 0;
  std::int64_t first_step_ = 0;
  double train_seconds_ = 0;  // without the first step, which lowers
};

}  // namespace gpt
