// Trains a small GPT on a text, a byte a token, through a schedule and one training Program; prints
// the validation loss beside that of a bigram model, and a sample.
//
//   train_char_gpt [--text FILE] [--steps 1000] [--device cuda --dtype bfloat16] [--schedule full]
//   train_char_gpt --out run1          # SIGINT finishes the step and saves
//   train_char_gpt --out run1 --resume
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "examples/char_gpt_trainer.h"
#include "tensor/error.h"

namespace {

volatile std::sig_atomic_t interrupted = 0;

void add_options(CLI::App& app, gpt::TrainerOptions& o) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--text", o.text, "text to learn (default: Lewis Carroll's Alice books)");
  app.add_option("--out", o.out, "folder for checkpoint.json, metrics.jsonl and loss.svg")
      ->capture_default_str();
  app.add_flag("--resume", o.resume, "continue from the checkpoint in --out, with its settings");
  app.add_option("--device", o.device, "cpu, cuda, cuda:N, or auto: cuda where there is one")
      ->capture_default_str();
  app.add_option("--dtype", o.dtype, "float32, float64 or bfloat16 (with float32 master weights)")
      ->capture_default_str();
  app.add_option("--schedule", o.schedule,
                 "none: the model as it is; full: examples/gpt_schedule.h")
      ->check(CLI::IsMember({"none", "full"}))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "of initial weights, batches and dropout")
      ->capture_default_str();
  app.add_option("--steps", o.steps, "optimizer steps")->capture_default_str();
  app.add_option("--batch", o.batch, "sequences a step")->capture_default_str();
  app.add_option("--seq", o.seq, "characters a sequence")->capture_default_str();
  app.add_option("--layers", o.layers, "transformer blocks")->capture_default_str();
  app.add_option("--hidden", o.hidden, "hidden size")->capture_default_str();
  app.add_option("--heads", o.heads, "attention heads; must divide the hidden size")
      ->capture_default_str();
  app.add_option("--dropout", o.dropout, "dropout probability")->capture_default_str();
  app.add_option("--lr", o.lr,
                 "largest learning rate, after the warmup of a twentieth of the steps")
      ->capture_default_str();
  app.add_option("--save-every", o.save_every, "steps between checkpoints")->capture_default_str();
  app.add_option("--sample", o.sample, "characters to write at the end")->capture_default_str();
  app.add_option("--profile", o.profile,
                 "after training, writes a Chrome or Perfetto trace of a step to this file");
  app.add_flag("--json", o.json,
               "last line of stdout: one JSON object; everything else goes to stderr");
  app.footer(
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
  CLI::App app{"Trains a GPT on a text, one character a token"};
  gpt::TrainerOptions options;
  add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.text.empty()) options.text = default_text();
  options.is_given = [&](const std::string& name) { return app.count("--" + name) > 0; };
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
