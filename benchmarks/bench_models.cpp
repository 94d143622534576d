// Whole models, forward or a training step, as the Programs that their ready-made schedules build.
//
//   bench_models --model resnet50 --batch 64 --mode train --json
//   bench_models --model bert_base --batch 32 --seq 128 --weights bert.safetensors --reference ref.safetensors
//
// Weights have the names of torchvision's and of BERT's public checkpoints. A reference holds inputs and
// the output of evaluation; max_error is the largest distance to it. A training step of an image model
// is cross entropy and SGD with momentum, of BERT the mean square of the output and AdamW.
#include <cmath>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "benchmarks/bert_model.h"
#include "benchmarks/measure.h"
#include "benchmarks/resnet_model.h"
#include "nn/checkpoint.h"
#include "schedule/schedule.h"
#include "schedule/schedules.h"
#include "schedule/training.h"
#include "tensor/device_backend.h"

namespace {

using namespace tenon;
using nlohmann::ordered_json;

struct Options : bench::CommonOptions {
  std::string model = "bert_base";
  std::int64_t batch = 8;
  std::int64_t seq = 128;
  std::int64_t size = 224;
  std::string mode = "fwd";
  std::string schedule = "full";
  std::string weights;
  std::string reference;
  int padding = 0;
  int runs = 30;
  bool verify = false;

  bool trains() const { return mode == "train"; }
  bool is_bert() const { return model == "bert_base" || model == "minilm"; }
};

void add_options(CommandLine& line, Options& o) {
  line.option("--model", o.model, "which")
      .one_of({"bert_base", "minilm", "resnet50", "wide_resnet50_2"});
  line.option("--batch", o.batch, "sequences or images").positive();
  line.option("--seq", o.seq, "tokens of a sequence").positive();
  line.option("--size", o.size, "height and width of an image").positive();
  line.option("--padding", o.padding, "percent of each sequence, at its end").range(0, 99);
  line.option("--mode", o.mode, "fwd or train").one_of({"fwd", "train"});
  line.option("--schedule", o.schedule, "none, or full: the model's ready-made one")
      .one_of({"none", "full"});
  line.option("--weights", o.weights, "a checkpoint to load").existing_file();
  line.option("--reference", o.reference, "a checkpoint of inputs and the output").existing_file();
  line.option("--runs", o.runs, "single steps of which the median counts").positive();
  line.flag("--verify", o.verify, "compare with the unscheduled model first");
  o.add_profile_to(line);
  o.add_to(line);
}

/// One model of this program, whatever its class.
struct Model {
  std::function<Schedule(const std::vector<Tensor>&)> trace;
  std::function<std::vector<Tensor>(Generator&)> draw_inputs;
  std::vector<std::string> inputs;  // their names, in a reference too
  std::string output;               // its name in a reference
  std::vector<Tensor> targets;
  LossFunction loss;
  std::shared_ptr<nn::Optimizer> optimizer;
};

template <class M>
void prepare(const Options& o, M& module, Device device) {
  if (!o.weights.empty()) {
    const nn::LoadOptions options{.allow_unexpected = {"pooler.*", ".*position_ids"}};
    nn::load_into(*module, nn::load_checkpoint(o.weights), options);
  }
  module->to(device, parse_dtype(o.dtype));
  module->train(o.trains());
  module->requires_grad_(o.trains());
}

Model make_bert(const Options& o, Device device) {
  const bench::BertSizes sizes = o.model == "minilm"
                                     ? bench::BertSizes{.layers = 6, .hidden = 384, .mlp = 1536}
                                     : bench::BertSizes{};
  auto module = nn::make<bench::Bert>(sizes);
  prepare(o, module, device);
  Model model;
  model.inputs = {"input_ids", "attention_mask"};
  model.output = "hidden";
  model.trace = [module](const std::vector<Tensor>& inputs) {
    return create_schedule(module, {{"ids", inputs[0]}, {"mask", inputs[1]}});
  };
  model.draw_inputs = [o, device, sizes](Generator& generator) -> std::vector<Tensor> {
    std::vector<std::int64_t> seen;
    const std::int64_t live = o.seq - o.seq * o.padding / 100;
    for (std::int64_t i = 0; i < o.batch * o.seq; ++i) seen.push_back(i % o.seq < live ? 1 : 0);
    const Tensor ids = randint(0, sizes.vocabulary, {o.batch, o.seq}, {DType::int64, kCpu}, &generator);
    return {ids.to(device), from_vector(seen, {o.batch, o.seq}).to(device)};
  };
  model.loss = [](auto outputs, auto) { return mean(square(outputs[0].to(DType::float32))); };
  if (o.trains()) {
    model.optimizer = std::make_shared<nn::AdamW>(module->named_parameters(),
                                                  nn::AdamWOptions{.lr = 1e-4},
                                                  nn::OptimizerOptions{.max_grad_norm = 1.0});
  }
  return model;
}

Model make_resnet(const Options& o, Device device) {
  auto module = nn::make<bench::ResNet>(o.model == "resnet50" ? 64 : 128);
  prepare(o, module, device);
  Model model;
  model.inputs = {"input"};
  model.output = "output";
  model.trace = [module](const std::vector<Tensor>& inputs) {
    return create_schedule(module, {{"images", inputs[0]}});
  };
  model.draw_inputs = [o, device](Generator& generator) -> std::vector<Tensor> {
    const Tensor images = randn({o.batch, 3, o.size, o.size}, {DType::float32, kCpu}, &generator);
    return {images.to(parse_dtype(o.dtype)).to(device)};
  };
  std::vector<std::int64_t> classes;
  for (std::int64_t i = 0; i < o.batch; ++i) classes.push_back(i % 1000);
  model.targets = {from_vector(classes, {o.batch}).to(device)};
  model.loss = [](auto outputs, auto targets) {
    return cross_entropy(outputs[0].to(DType::float32), targets[0]);
  };
  if (o.trains()) {
    model.optimizer = std::make_shared<nn::SGD>(module->named_parameters(),
                                                nn::SgdOptions{.lr = 0.01, .momentum = 0.9});
  }
  return model;
}

/// Scheduled, with what was recognized and left alone on stderr.
Schedule scheduled(const Options& o, const Model& model, const std::vector<Tensor>& inputs) {
  Schedule sch = model.trace(inputs);
  if (o.schedule == "none") return sch;
  const schedules::Summary summary =
      o.is_bert() ? schedules::transformer_encoder(sch) : schedules::convolutional(sch);
  for (const std::string& reason : summary.refused) std::cerr << "not rewritten: " << reason << "\n";
  return sch;
}

std::vector<std::vector<Tensor>> draw_sets(const Options& o, const Model& model) {
  Generator generator(o.seed + 1);
  std::vector<std::vector<Tensor>> sets = {model.draw_inputs(generator)};
  std::size_t bytes = 0;
  for (const Tensor& input : sets[0]) {
    bytes += static_cast<std::size_t>(input.layout().numel()) * size_of(input.dtype());
  }
  const auto count = static_cast<std::size_t>(bench::rotation_length(bytes));
  while (sets.size() < count) sets.push_back(model.draw_inputs(generator));
  return sets;
}

double largest_distance(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.to_doubles(), y = b.to_doubles();
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) largest = std::fmax(largest, std::fabs(x[i] - y[i]));
  return largest;
}

/// The largest distance from the reference's output.
ordered_json error_of(const Options& o, const Model& model, Executor& run, Device device) {
  if (o.reference.empty()) return {};
  const auto reference = nn::load_checkpoint(o.reference).tensors;
  std::vector<Tensor> inputs;
  for (const std::string& name : model.inputs) {
    const Tensor input = reference.at(name);
    inputs.push_back((is_floating(input.dtype()) ? input.to(parse_dtype(o.dtype)) : input).to(device));
  }
  return largest_distance(run.run(inputs, /*training=*/false)[0], reference.at(model.output));
}

ordered_json figures(const Options& o, Device device, Program& program,
                     std::span<const Tensor> inputs, const bench::StepTimes& times) {
  bench::profile_if_asked(o, program, inputs);
  const DType dtype = parse_dtype(o.dtype);
  return {{"device", device_backend(device.type).device_name(device.index)},
          {"model", o.model},
          {"dtype", name(dtype)},
          {"batch", o.batch},
          {o.is_bert() ? "seq" : "size", o.is_bert() ? o.seq : o.size},
          {"mode", o.mode},
          {"schedule", o.schedule},
          {"latency_ms", times.latency_ms},
          {"throughput_ms", times.throughput_ms},
          {"kernels", program.count_kernels(inputs)},
          {"floor_ms", bench::floor_ms(program, dtype)},
          {"arena_bytes", program.arena_bytes()}};
}

ordered_json measure_forward(const Options& o, const Model& model, Device device) {
  const auto sets = draw_sets(o, model);
  Executor run = build(scheduled(o, model, sets[0]), {.verify = o.verify});
  const ordered_json error = error_of(o, model, run, device);
  const auto turns = static_cast<std::int64_t>(sets.size());
  const bench::StepTimes times =
      bench::time_steps(device, o.runs, turns, [&](std::int64_t i) {
        run.run(sets[static_cast<std::size_t>(i % turns)], /*training=*/false);
      });
  ordered_json result = figures(o, device, run.program(sets[0]), sets[0], times);
  result["max_error"] = error;
  return result;
}

ordered_json measure_training(const Options& o, const Model& model, Device device) {
  auto sets = draw_sets(o, model);
  std::vector<ExampleInput> targets;
  for (const Tensor& target : model.targets) targets.push_back({"target", target});
  auto step = build_training(scheduled(o, model, sets[0]), {.loss = model.loss,
                                                            .targets = targets,
                                                            .optimizer = model.optimizer,
                                                            .verify = o.verify});
  for (auto& set : sets) set.insert(set.end(), model.targets.begin(), model.targets.end());
  const auto turns = static_cast<std::int64_t>(sets.size());
  const double first = step.run(sets[0]).loss.item();
  const bench::StepTimes times = bench::time_steps(device, o.runs, turns, [&](std::int64_t i) {
    step.run(sets[static_cast<std::size_t>(i % turns)]);
  });
  ordered_json result = figures(o, device, step.program(sets[0]), sets[0], times);
  result["first_loss"] = first;
  result["last_loss"] = step.run(sets[0]).loss.item();
  return result;
}

ordered_json measure(const Options& o) {
  const Device device = o.chosen_device();
  manual_seed(o.seed);
  const Model model = o.is_bert() ? make_bert(o, device) : make_resnet(o, device);
  return o.trains() ? measure_training(o, model, device) : measure_forward(o, model, device);
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times whole models");
  Options options;
  add_options(line, options);
  return bench::run_program(line, argc, argv, options, [&] { return measure(options); });
}
