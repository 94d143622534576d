#include "examples/char_gpt_trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <ostream>

#include "examples/gpt_schedule.h"
#include "graph/profile.h"
#include "schedule/schedule.h"
#include "tensor/device_backend.h"

namespace gpt {

using namespace tenon;

namespace {

constexpr double kMaxGradNorm = 1.0;
constexpr std::int64_t kEvaluations =
    5;  // validation losses a run; one costs about as much as ten steps

/// The settings that a checkpoint keeps, so that a resumed run is the same run.
template <class Visit>
void visit_settings(TrainerOptions& o, const Visit& visit) {
  visit("layers", o.layers);
  visit("hidden", o.hidden);
  visit("heads", o.heads);
  visit("seq", o.seq);
  visit("batch", o.batch);
  visit("steps", o.steps);
  visit("dropout", o.dropout);
  visit("lr", o.lr);
  visit("dtype", o.dtype);
  visit("seed", o.seed);
  visit("schedule", o.schedule);
}

std::optional<std::int64_t> read(const nn::JsonObject& json, const char* key, std::int64_t) {
  return json.integer(key);
}
std::optional<double> read(const nn::JsonObject& json, const char* key, double) {
  return json.number(key);
}
std::optional<std::string> read(const nn::JsonObject& json, const char* key, const std::string&) {
  return json.string(key);
}
std::optional<std::uint64_t> read(const nn::JsonObject& json, const char* key, std::uint64_t) {
  // Unsigned 64-bit numbers are text: JSON readers keep 53 bits.
  const auto text = json.string(key);
  return text ? std::optional<std::uint64_t>(std::stoull(*text)) : std::nullopt;
}

void write(nn::JsonObject& json, const char* key, std::int64_t value) { json.set(key, value); }
void write(nn::JsonObject& json, const char* key, double value) { json.set(key, value); }
void write(nn::JsonObject& json, const char* key, const std::string& value) {
  json.set(key, std::string_view(value));
}
void write(nn::JsonObject& json, const char* key, std::uint64_t value) {
  json.set(key, std::string_view(std::to_string(value)));
}

std::string checkpoint_path(const TrainerOptions& options) {
  return (std::filesystem::path(options.out) / "checkpoint.json").string();
}

void check(const TrainerOptions& o) {
  for (const auto& [name, value] : {std::pair{"--steps", o.steps},
                                    {"--batch", o.batch},
                                    {"--seq", o.seq},
                                    {"--layers", o.layers},
                                    {"--hidden", o.hidden},
                                    {"--heads", o.heads},
                                    {"--save-every", o.save_every}}) {
    const std::int64_t least = name == std::string("--steps") ? 0 : 1;
    if (value < least) {
      throw ValueError(std::string(name) + " is " + std::to_string(value) + "; needed at least " +
                       std::to_string(least));
    }
  }
  if (o.dtype == "float16") {
    throw ValueError("--dtype float16 would need its loss scaled; use bfloat16");
  }
}

bool is_finite(const Tensor& tensor) {
  if (!is_floating(tensor.dtype())) return true;
  const auto values = tensor.to_doubles();
  return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

nn::StateDict with_prefix(const nn::StateDict& state, const std::string& prefix) {
  nn::StateDict result;
  for (const auto& [name, tensor] : state) {
    if (name.starts_with(prefix)) result.add(name.substr(prefix.size()), tensor);
  }
  return result;
}

}  // namespace

Trainer::Trainer(TrainerOptions options, std::ostream& out)
    : options_(std::move(options)), out_(out) {
  std::optional<nn::Checkpoint> checkpoint;
  if (options_.resume) {
    checkpoint = nn::load_checkpoint(checkpoint_path(options_));
    read_settings(*checkpoint);
  }
  check(options_);
  device_ = options_.device == "auto" ? (is_available(kCuda) ? kCuda : kCpu)
                                      : Device::parse(options_.device);
  require_available(device_);
  dtype_ = parse_dtype(options_.dtype);
  if (!is_floating(dtype_)) throw DTypeError("--dtype " + options_.dtype + " is not a float");
  text_ = std::make_unique<CharText>(options_.text, options_.seq);
  bigram_loss_ = text_->bigram_validation_loss();
  make_model();
  if (checkpoint) restore(*checkpoint);
  build();
}

void Trainer::read_settings(const nn::Checkpoint& checkpoint) {
  visit_settings(options_, [&](const char* name, auto& value) {
    const auto stored = read(checkpoint.config, name, value);
    if (!stored) throw CheckpointError(checkpoint.path + ": its config has no " + name);
    if (options_.is_given(name) && *stored != value) {
      throw ValueError(std::string("--") + name + " differs from the run that --resume continues");
    }
    value = *stored;
  });
}

void Trainer::make_model() {
  const GptOptions sizes{static_cast<std::int64_t>(text_->vocabulary().size()),
                         options_.seq,
                         options_.layers,
                         options_.hidden,
                         options_.heads,
                         options_.dropout};
  model_ = nn::make<Gpt>(sizes);
  model_->initialize(options_.seed);
  model_->to(device_, dtype_);
  model_->requires_grad_();
  optimizer_ = std::make_shared<nn::AdamW>(
      model_->named_parameters(),
      nn::AdamWOptions{
          .lr = options_.lr, .beta2 = 0.95, .weight_decay = 0.1, .no_decay = {"*.bias", "*norm*"}},
      nn::OptimizerOptions{.max_grad_norm = kMaxGradNorm});
  default_generator().manual_seed(options_.seed);
}

void Trainer::restore(const nn::Checkpoint& checkpoint) {
  const auto text_hash = read(checkpoint.config, "text_hash", std::uint64_t{});
  if (text_hash != text_->hash()) {
    throw ValueError("--resume with another text than the run in " + options_.out);
  }
  model_->load_state_dict(with_prefix(checkpoint.tensors, "model."));
  optimizer_->load_state_dict(with_prefix(checkpoint.tensors, "optimizer."));
  const auto steps = checkpoint.config.integer("steps_done");
  const auto forward = checkpoint.config.integer("generator_forward");
  if (!steps || !forward) {
    throw CheckpointError(checkpoint.path + ": its config has no steps_done and generator_forward");
  }
  steps_done_ = *steps;
  default_generator().set_forward(static_cast<std::uint32_t>(*forward));
}

void Trainer::build() {
  const std::uint32_t forward = default_generator().state().forward;
  const Batch example = text_->training_batch(options_.seed, 0, options_.batch);
  Schedule sch = create_schedule(model_, {{"tokens", example.inputs.to(device_)}});
  if (options_.schedule == "full") schedule_gpt(sch, model_->options);
  step_.emplace(build_training(
      sch, {.loss =
                [](std::span<const Tensor> outputs, std::span<const Tensor> targets) {
                  return next_token_loss(outputs[0], targets[0]);
                },
            .targets = {{"targets", example.targets.to(device_)}},
            .optimizer = optimizer_}));
  forward_ = std::make_unique<Executor>(tenon::build(sch, {.verify = false}));
  // What verification drew does not count.
  default_generator().set_forward(forward);
}

TrainingSummary Trainer::run() {
  std::filesystem::create_directories(options_.out);
  metrics_ = std::make_unique<MetricsLog>(
      (std::filesystem::path(options_.out) / "metrics.jsonl").string(), steps_done_);
  std::int64_t parameters = 0;
  for (const auto& [name, tensor] : model_->named_parameters()) {
    parameters += tensor.layout().numel();
  }
  out_ << "device " << device_backend(device_.type).device_name(device_.index) << ", "
       << name(dtype_) << ", " << parameters << " parameters, " << text_->train().size()
       << " characters to learn, " << text_->validation().size() << " held out\n";
  TrainingSummary summary;
  summary.interrupted = !train();
  summary.steps = steps_done_;
  summary.bigram_val_loss = bigram_loss_;
  const std::int64_t timed = steps_done_ - first_step_ - 1;
  if (timed > 0 && train_seconds_ > 0) {
    summary.tokens_per_s =
        static_cast<double>(timed * options_.batch * options_.seq) / train_seconds_;
  }
  if (summary.interrupted) {
    out_ << "interrupted after step " << steps_done_ << "; continue with --resume --out "
         << options_.out << "\n";
    return summary;
  }
  summary.val_loss = validation_loss();
  write_sample();
  write_profile();
  return summary;
}

/// False when it was interrupted; then the checkpoint is written too.
bool Trainer::train() {
  first_step_ = steps_done_;
  Progress progress(out_, options_.is_terminal, first_step_, options_.steps);
  const std::int64_t stride = std::max<std::int64_t>(1, options_.steps / kEvaluations);
  bool stopped = options_.stop();
  while (steps_done_ < options_.steps && !stopped) {
    StepRecord record = train_step(steps_done_);
    ++steps_done_;
    stopped = options_.stop();
    if (steps_done_ % stride == 0 || steps_done_ == options_.steps) {
      record.val_loss = validation_loss();
    }
    metrics_->add(record);
    progress.show(record);
    const bool ends = stopped || steps_done_ == options_.steps;
    if (steps_done_ % options_.save_every == 0 && !ends) save();
  }
  progress.break_line();
  save();
  return steps_done_ == options_.steps;
}

StepRecord Trainer::train_step(std::int64_t step) {
  const nn::WarmupCosine rate{.lr = options_.lr,
                              .warmup_steps = options_.steps / 20,
                              .total_steps = options_.steps,
                              .min_lr = options_.lr / 10};
  const auto started = std::chrono::steady_clock::now();
  const Batch batch = text_->training_batch(options_.seed, step, options_.batch);
  optimizer_->set_lr(rate(step));
  const TrainingResult result = step_->run({batch.inputs.to(device_), batch.targets.to(device_)});
  StepRecord record{.step = step + 1, .loss = result.loss.item(), .lr = rate(step)};
  record.grad_norm = result.grad_norm.item();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - started;
  record.tokens_per_s = static_cast<double>(options_.batch * options_.seq) / elapsed.count();
  if (step > first_step_) train_seconds_ += elapsed.count();
  if (!std::isfinite(record.loss) || !std::isfinite(record.grad_norm)) {
    throw NonFiniteLoss("step " + std::to_string(record.step) + ": the loss is " +
                        std::to_string(record.loss) + ", the gradient norm " +
                        std::to_string(record.grad_norm) +
                        "; the first tensor that is not finite: " + first_non_finite(batch) +
                        ". The last checkpoint is kept");
  }
  return record;
}

/// In the order in which a step computes: parameters, then what each module makes of them.
std::string Trainer::first_non_finite(const Batch& batch) {
  for (const auto& [name, tensor] : model_->named_parameters()) {
    if (!is_finite(tensor)) return "parameter " + name;
  }
  std::string found;
  std::vector<nn::HookHandle> hooks;
  for (const auto& [path, module] : model_->named_modules()) {
    hooks.push_back(module->register_forward_hook(
        [&found, path = path](nn::Module&, std::span<const Tensor>, std::span<Tensor> outputs) {
          for (const Tensor& output : outputs) {
            if (found.empty() && !is_finite(output)) found = "the output of '" + path + "'";
          }
        }));
  }
  const NoGradGuard no_grad;
  const Tensor logits = model_(batch.inputs.to(device_));
  for (nn::HookHandle& hook : hooks) hook.remove();
  return found.empty() ? "a gradient" : found;
}

double Trainer::validation_loss() {
  const NoGradGuard no_grad;
  const std::int64_t windows = text_->validation_windows();
  double sum = 0;
  for (std::int64_t first = 0; first < windows; first += options_.batch) {
    const std::int64_t count = std::min(options_.batch, windows - first);
    const Batch batch = text_->validation_batch(first, count);
    const Tensor logits = (*forward_)(batch.inputs.to(device_));
    sum += next_token_loss(logits, batch.targets.to(device_)).item() * static_cast<double>(count);
  }
  return sum / static_cast<double>(windows);
}

void Trainer::save() {
  nn::Checkpoint checkpoint;
  checkpoint.metadata.set("producer", "train_char_gpt");
  visit_settings(options_, [&](const char* name, const auto& value) {
    write(checkpoint.config, name, value);
  });
  write(checkpoint.config, "text_hash", text_->hash());
  write(checkpoint.config, "steps_done", steps_done_);
  // The seed is a setting; batches follow from it and the step.
  write(checkpoint.config, "generator_forward",
        static_cast<std::int64_t>(default_generator().state().forward));
  for (const auto& [name, tensor] : model_->state_dict()) {
    checkpoint.tensors.add("model." + name, tensor);
  }
  for (const auto& [name, tensor] : optimizer_->state_dict()) {
    checkpoint.tensors.add("optimizer." + name, tensor);
  }
  nn::save_checkpoint(checkpoint_path(options_), checkpoint);
  write_loss_curve((std::filesystem::path(options_.out) / "loss.svg").string(), metrics_->records(),
                   bigram_loss_);
}

/// Continues a beginning, each character drawn from the softmax of its logits at temperature 0.8.
void Trainer::write_sample() {
  if (options_.sample <= 0) return;
  const NoGradGuard no_grad;
  std::vector<std::int64_t> tokens = text_->encode("Alice ");
  if (tokens.empty()) tokens = {text_->train()[0]};
  const Tensor draws = uniform({options_.sample}, 0, 1, {DType::float64});
  const auto random = draws.to_vector<double>();
  for (const double draw : random) {
    const auto n = std::min<std::int64_t>(static_cast<std::int64_t>(tokens.size()), options_.seq);
    const Tensor input =
        from_vector(std::vector<std::int64_t>(tokens.end() - n, tokens.end()), {1, n});
    const Tensor logits = (*forward_)(input.to(device_)).narrow(1, n - 1, 1);
    const auto p = softmax(logits.to(DType::float32) * 1.25, -1).to_doubles();
    double left = draw;
    std::size_t token = 0;
    while (token + 1 < p.size() && (left -= p[token]) > 0) ++token;
    tokens.push_back(static_cast<std::int64_t>(token));
  }
  out_ << "\n--- sample ---\n";
  for (const std::int64_t token : tokens) out_ << text_->decode(token);
  out_ << "\n--------------\n";
}

/// Of further steps, whose effect on the parameters is not kept.
void Trainer::write_profile() {
  if (options_.profile.empty()) return;
  const Batch batch = text_->training_batch(options_.seed, steps_done_, options_.batch);
  const Tensor inputs[] = {batch.inputs.to(device_), batch.targets.to(device_)};
  const Profile times = profile(step_->program(inputs), inputs);
  times.write_chrome_trace(options_.profile);
  out_ << "\n" << times.to_string();
}

}  // namespace gpt
