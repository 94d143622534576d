// Trains a small GPT on a text, a byte a token, through a schedule and one training Program; prints
// the validation loss beside that of a bigram model, and a sample.
//
//   train_char_gpt [--text FILE] [--steps 1000] [--device cuda --dtype bfloat16] [--schedule full]
//   train_char_gpt --out run1          # SIGINT finishes the step and saves
//   train_char_gpt --out run1 --resume
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "examples/char_gpt_trainer.h"
#include "examples/command_line.h"
#include "tensor/error.h"

namespace {

volatile std::sig_atomic_t interrupted = 0;

void add_options(tenon::CommandLine& line, gpt::TrainerOptions& o) {
  line.last_wins();
  line.option("--text", o.text, "text to learn (default: Lewis Carroll's Alice books)");
  line.option("--out", o.out, "folder for checkpoint.json, metrics.jsonl and loss.svg");
  line.flag("--resume", o.resume, "continue from the checkpoint in --out, with its settings");
  line.option("--device", o.device, "cpu, cuda, cuda:N, or auto: cuda where there is one");
  line.option("--dtype", o.dtype, "float32, float64 or bfloat16 (with float32 master weights)");
  line.option("--schedule", o.schedule, "none: the model as it is; full: examples/gpt_schedule.h")
      .one_of({"none", "full"});
  line.option("--seed", o.seed, "of initial weights, batches and dropout");
  line.option("--steps", o.steps, "optimizer steps");
  line.option("--batch", o.batch, "sequences a step");
  line.option("--seq", o.seq, "characters a sequence");
  line.option("--layers", o.layers, "transformer blocks");
  line.option("--hidden", o.hidden, "hidden size");
  line.option("--heads", o.heads, "attention heads; must divide the hidden size");
  line.option("--dropout", o.dropout, "dropout probability");
  line.option("--lr", o.lr, "largest learning rate, after the warmup of a twentieth of the steps");
  line.option("--save-every", o.save_every, "steps between checkpoints");
  line.option("--sample", o.sample, "characters to write at the end");
  line.option("--profile", o.profile,
              "after training, writes a Chrome or Perfetto trace of a step to this file");
  line.flag("--json", o.json,
            "last line of stdout: one JSON object; everything else goes to stderr");
  line.footer(
      "Exit status: 0 trained; 1 the loss became NaN or infinite; 2 an error; 130 interrupted and "
      "saved.");
}

std::string default_text() {
  namespace fs = std::filesystem;
  const fs::path program = fs::read_symlink("/proc/self/exe");
  return (program.parent_path() / "../share/tenon/examples/alice.txt").lexically_normal();
}

void report(const gpt::TrainingSummary& summary, bool as_json, std::ostream& out) {
  out << "\nvalidation loss " << summary.val_loss << ", bigram model " << summary.bigram_val_loss
      << "; " << static_cast<long long>(summary.tokens_per_s) << " tokens/s\n";
  if (!as_json) return;
  const nlohmann::ordered_json line = {{"val_loss", summary.val_loss},
                                       {"bigram_val_loss", summary.bigram_val_loss},
                                       {"tokens_per_s", summary.tokens_per_s},
                                       {"steps", summary.steps}};
  std::cout << line.dump() << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  tenon::CommandLine line("Trains a GPT on a text, one character a token");
  gpt::TrainerOptions options;
  add_options(line, options);
  if (const auto status = line.parse(argc, argv)) return *status;
  if (options.text.empty()) options.text = default_text();
  options.is_given = [&](const std::string& name) { return line.is_given("--" + name); };
  options.is_terminal = isatty(options.json ? STDERR_FILENO : STDOUT_FILENO) != 0;
  options.stop = [] { return interrupted != 0; };
  std::signal(SIGINT, [](int) { interrupted = 1; });
  std::ostream& out = options.json ? std::cerr : std::cout;
  try {
    gpt::Trainer trainer(options, out);
    const gpt::TrainingSummary summary = trainer.run();
    if (summary.interrupted) return 130;
    report(summary, options.json, out);
    return 0;
  } catch (const gpt::NonFiniteLoss& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
