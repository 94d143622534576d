#include "tests/fuzz/oracle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "autograd/autograd.h"
#include "schedule/joint_graph.h"
#include "schedule/training.h"
#include "tensor/random.h"

namespace tenon::fuzz {
namespace {

/// Rounding noise in a gradient that is zero in truth, relative to the largest of all gradients.
constexpr double kGradientNoise = 1e-2;
/// The same in an output, absolutely: inputs are of size 1.
constexpr double kOutputNoise = 1e-4;

/// Roundings of a computation, in units of those by which nudged() moves its numbers.
constexpr double kConditioning = 64;

/// Weights of the outputs' elements in the loss, so that every element counts differently.
std::vector<Tensor> cotangents_of(const std::vector<Tensor>& outputs, std::uint64_t seed) {
  Generator generator(seed + 77);
  std::vector<Tensor> cotangents;
  for (const Tensor& output : outputs) {
    cotangents.push_back(randn(output.shape(), {}, &generator).to(output.dtype()));
  }
  return cotangents;
}

Tensor weighted_sum(std::span<const Tensor> outputs, std::span<const Tensor> weights) {
  Tensor loss = sum(outputs[0] * weights[0]);
  for (std::size_t i = 1; i < outputs.size(); ++i) loss = loss + sum(outputs[i] * weights[i]);
  return loss;
}

void start_forward(std::uint64_t seed) { default_generator() = Generator(seed); }

std::vector<ExampleInput> examples_of(const std::vector<Tensor>& tensors) {
  std::vector<ExampleInput> examples;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    examples.emplace_back(fmt::format("weights_{}", i), tensors[i]);
  }
  return examples;
}

std::vector<Tensor> concatenated(std::vector<Tensor> first, const std::vector<Tensor>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

void append_buffers(Results& results, nn::Module& model) {
  for (const auto& [name, buffer] : model.named_buffers()) {
    results.emplace_back("buffer " + name, buffer.clone());
  }
}

/// By a joint Graph of its own: a TrainingStep gives gradients of parameters only.
void append_input_gradients(Results& results, const Schedule& schedule,
                            const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                            std::uint64_t seed) {
  Graph forward = schedule.graph();
  forward.drop_writes();
  JointGraph joint(forward, {});
  std::vector<std::size_t> floating;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!is_floating(inputs[i].dtype())) continue;
    joint.input(i).requires_grad_();
    floating.push_back(i);
  }
  if (floating.empty()) return;
  std::vector<Tensor> targets;
  for (const ExampleInput& example : examples_of(weights)) {
    targets.push_back(joint.add_input(example));
  }
  std::vector<std::size_t> defined;
  Graph graph = joint.record([&](std::span<const Tensor> outputs) {
    std::vector<Tensor> wanted;
    for (const std::size_t i : floating) wanted.push_back(joint.input(i));
    const Tensor loss = weighted_sum(outputs, targets);
    std::vector<Tensor> gradients = grad(std::span(&loss, 1), wanted, {}, {.allow_unused = true});
    std::vector<Tensor> found;
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i]) continue;
      defined.push_back(floating[i]);
      found.push_back(gradients[i]);
    }
    if (found.empty()) found.push_back(loss);
    return found;
  });
  start_forward(seed);
  const auto gradients = Executor(std::move(graph)).run(concatenated(inputs, weights), true);
  for (std::size_t i = 0; i < defined.size(); ++i) {
    results.emplace_back(fmt::format("gradient of input {}", defined[i]), gradients[i]);
  }
}

double largest_value(const Tensor& tensor) {
  double largest = 0;
  for (const double value : tensor.to_doubles()) largest = std::max(largest, std::abs(value));
  return largest;
}

double largest_gradient(const Results& results) {
  double largest = 0;
  for (const auto& [name, tensor] : results) {
    if (name.starts_with("gradient")) largest = std::max(largest, largest_value(tensor));
  }
  return largest;
}

struct Apart {
  std::string name;
  double error = 0;  // relative
};

/// Every result of either side; one that is a zero gradient on one side may be absent on the other.
std::vector<Apart> compare(const Results& results, const Results& reference) {
  std::unordered_map<std::string, Tensor> other;
  for (const auto& [name, tensor] : results) other.emplace(name, tensor);
  const double gradients = largest_gradient(reference);
  std::vector<Apart> apart;
  const auto add = [&](const std::string& name, const Tensor& expected, const Tensor& given) {
    const bool is_gradient = name.find("gradient") != std::string::npos;
    if ((!expected || !given) && !is_gradient) {
      apart.push_back({name + " (on one side only)", HUGE_VAL});
      return;
    }
    std::vector<double> a = expected ? expected.to_doubles() : std::vector<double>();
    std::vector<double> b = given ? given.to_doubles() : std::vector<double>(a.size(), 0.0);
    if (!expected) a.assign(b.size(), 0.0);
    if (a.size() != b.size()) {
      apart.push_back({name + " (sizes differ)", HUGE_VAL});
      return;
    }
    double scale = is_gradient ? kGradientNoise * gradients : kOutputNoise;
    double largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (std::isfinite(a[i])) scale = std::max(scale, std::abs(a[i]));
      if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
      const double difference = std::abs(a[i] - b[i]);
      largest = std::max(largest, std::isnan(difference) ? HUGE_VAL : difference);
    }
    apart.push_back({name, largest == 0 ? 0 : largest / scale});
  };
  for (const auto& [name, expected] : reference) {
    const auto found = other.find(name);
    add(name, expected, found == other.end() ? Tensor() : found->second);
    if (found != other.end()) other.erase(found);
  }
  for (const auto& [name, tensor] : other) add(name, Tensor(), tensor);
  return apart;
}

}  // namespace

Results run_plain(const nn::Child<RandomModel>& model, const std::vector<Tensor>& inputs,
                  std::uint64_t seed) {
  Results results;
  model->eval();
  {
    const NoGradGuard no_grad;
    const std::vector<Tensor> outputs = model(inputs);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      results.emplace_back(fmt::format("eval output {}", i), outputs[i]);
    }
  }
  model->train();
  std::vector<Tensor> leaves;
  for (const Tensor& input : inputs) {
    leaves.push_back(input.detach());
    if (is_floating(input.dtype())) leaves.back().requires_grad_();
  }
  start_forward(seed);
  const std::vector<Tensor> outputs = model(leaves);
  const Tensor loss = weighted_sum(outputs, cotangents_of(outputs, seed));
  if (loss.requires_grad()) backward(loss);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    results.emplace_back(fmt::format("output {}", i), outputs[i].detach());
  }
  results.emplace_back("loss", loss.detach());
  for (const auto& [name, parameter] : model->named_parameters()) {
    if (parameter.grad()) results.emplace_back("gradient of " + name, parameter.grad());
  }
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (leaves[i].grad())
      results.emplace_back(fmt::format("gradient of input {}", i), leaves[i].grad());
  }
  append_buffers(results, *model);
  return results;
}

Results run_scheduled(const Schedule& schedule, const std::vector<Tensor>& inputs,
                      std::uint64_t seed) {
  Results results;
  Executor executor = build(schedule, {.verify = false});
  const std::vector<Tensor> in_eval = executor.run(inputs, false);
  for (std::size_t i = 0; i < in_eval.size(); ++i) {
    results.emplace_back(fmt::format("eval output {}", i), in_eval[i]);
  }
  start_forward(seed);
  const std::vector<Tensor> outputs = executor.run(inputs, true);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    results.emplace_back(fmt::format("output {}", i), outputs[i]);
  }
  append_buffers(results, schedule.model());
  const std::vector<Tensor> weights = cotangents_of(outputs, seed);
  TrainingStep step = build_training(
      schedule, {.loss = weighted_sum, .targets = examples_of(weights), .verify = false});
  start_forward(seed);
  const TrainingResult trained = step.run(concatenated(inputs, weights));
  results.emplace_back("loss", trained.loss);
  for (const auto& [name, gradient] : trained.gradients) {
    results.emplace_back("gradient of " + name, gradient);
  }
  append_input_gradients(results, schedule, inputs, weights, seed);
  return results;
}

std::string first_difference(const Results& plain, const Results& scheduled, double tolerance,
                             const Results& nudged) {
  std::unordered_map<std::string, double> moved;
  if (!nudged.empty()) {
    for (const Apart& result : compare(nudged, plain)) moved[result.name] = result.error;
  }
  for (const Apart& result : compare(scheduled, plain)) {
    const double allowed = tolerance + kConditioning * moved[result.name];
    if (result.error <= allowed) continue;
    return fmt::format("{} differs by {:.3g} of its largest value; allowed {:.3g}", result.name,
                       result.error, allowed);
  }
  return {};
}

Tensor nudged(const Tensor& tensor) {
  if (!is_floating(tensor.dtype())) return tensor;
  std::vector<double> values = tensor.to_doubles();
  SplitMix64 directions(values.size(), 0);
  for (double& value : values) {
    const double direction = static_cast<double>(directions.below(1U << 16)) / 0x8000 - 1;
    value *= 1 + std::ldexp(direction, -50);
  }
  return ::tenon::tensor(std::span<const double>(values), tensor.shape(), {tensor.dtype(), kCpu});
}

double largest_error(const Results& results, const Results& reference) {
  double largest = 0;
  for (const Apart& result : compare(results, reference)) largest = std::max(largest, result.error);
  return largest;
}

}  // namespace tenon::fuzz
