// What a training run leaves behind and shows: a line of JSON a step, a curve of the losses as SVG,
// and a progress bar.
#pragma once

#include <chrono>
#include <cstdint>
#include <fstream>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

namespace gpt {

struct StepRecord {
  std::int64_t step = 0;  // steps done, from 1 on
  double loss = 0;        // of the training batch, before the update
  double lr = 0;
  double grad_norm = 0;
  double tokens_per_s = 0;
  std::optional<double> val_loss = {};  // where it was measured, after the update
};

/// The records of a run, in memory and as a .jsonl file that is appended to as they come.
class MetricsLog {
 public:
  /// Keeps the records up to `steps_done` of an earlier run, and none of a later one. ValueError when
  /// the file cannot be read or written.
  MetricsLog(std::string path, std::int64_t steps_done);
  void add(const StepRecord& record);
  const std::vector<StepRecord>& records() const { return records_; }

 private:
  std::string path_;
  std::vector<StepRecord> records_;
  std::ofstream file_;
};

/// Draws training and validation losses, with the bigram model's loss as a level to compare with.
/// The file appears whole or not at all; ValueError when it cannot be written.
void write_loss_curve(const std::string& path, const std::vector<StepRecord>& records,
                      double bigram_loss);

/// One line that is rewritten on a terminal; elsewhere about twenty lines a run.
class Progress {
 public:
  Progress(std::ostream& out, bool is_terminal, std::int64_t first_step, std::int64_t steps);
  void show(const StepRecord& record);
  /// Ends the line that show() keeps rewriting, so that other text can follow.
  void break_line();

 private:
  using Clock = std::chrono::steady_clock;
  std::ostream& out_;
  bool is_terminal_;
  bool line_is_open_ = false;
  std::int64_t first_step_;
  std::int64_t steps_;
  Clock::time_point started_ = Clock::now();
  Clock::time_point shown_ = {};
};

}  // namespace gpt
