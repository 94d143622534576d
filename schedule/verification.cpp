#include "schedule/verification.h"

#include <chrono>
#include <cmath>

#include "graph/program.h"
#include "tensor/detail/check.h"
#include "tensor/random.h"

namespace tenon {
namespace {

/// Roundings by which two correct float computations of one output may differ in the last place.
constexpr double kFloorRoundings = 4;
/// The same for two float64 computations of a whole model, relative to the largest output.
constexpr double kFloat64Tolerance = 1e-10;

using Sizes = std::vector<std::vector<std::int64_t>>;

/// Values for the symbols of the inputs: bound ones follow from the free ones.
std::optional<Sizes> assign_sizes(const Graph& graph, const std::vector<std::int64_t>& candidates) {
  DimBindings bindings;
  std::vector<std::pair<std::int64_t, Dim>> symbols;
  for (ValueId id : graph.inputs()) {
    for (const Dim& dim : graph.value(id).spec.shape) {
      std::vector<std::int64_t> ids;
      dim.collect_symbols(ids);
      if (ids.size() == 1) symbols.emplace_back(ids[0], dim);
    }
  }
  std::size_t next = 0;
  for (const auto& [id, dim] : symbols) {
    std::vector<std::int64_t> free;
    dim.resolved().collect_symbols(free);
    const bool own = free.size() == 1 && free[0] == id;
    if (own)
      bindings[id] = candidates.empty() ? dim.hint() : candidates[next++ % candidates.size()];
  }
  for (const auto& [id, dim] : symbols) {
    if (!bindings.contains(id)) bindings[id] = dim.resolved().evaluate(bindings);
  }
  for (const DimGuard& guard : graph.guards()->guards) {
    if (!guard.holds(bindings)) return std::nullopt;
  }
  Sizes sizes;
  for (ValueId id : graph.inputs()) {
    sizes.emplace_back();
    for (const Dim& dim : graph.value(id).spec.shape) {
      sizes.back().push_back(dim.evaluate(bindings));
    }
  }
  return sizes;
}

Sizes choose_sizes(const Graph& graph) {
  if (const auto small = assign_sizes(graph, {3, 7, 5, 11})) return *small;
  return *assign_sizes(graph, {});
}

std::vector<Tensor> random_inputs(const Graph& graph, const Sizes& sizes, Generator& generator) {
  std::vector<Tensor> inputs;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const DType dtype = graph.value(graph.inputs()[i]).spec.dtype;
    const Shape shape(std::vector<Dim>(sizes[i].begin(), sizes[i].end()));
    if (is_floating(dtype)) {
      inputs.push_back(randn(shape, {dtype, kCpu}, &generator));
    } else {  // indices and flags: 0 and 1 are valid whatever they select
      inputs.push_back(cast(uniform(shape, 0, 2, {}, &generator), dtype));
    }
  }
  return inputs;
}

std::vector<Tensor> run(const Graph& graph, const std::vector<Tensor>& inputs,
                        const LowerOptions& options, std::uint64_t seed) {
  std::vector<TensorSpec> specs;
  for (const Tensor& input : inputs) specs.push_back(input.spec());
  Generator generator(seed);
  return lower(graph, specs, options)->run(inputs, generator);
}

struct Difference {
  double largest = 0;  // NaN in one only counts as infinite
  double scale = 0;    // largest |reference|
};

Difference difference(const std::vector<double>& values, const std::vector<double>& reference) {
  Difference result;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double a = values[i];
    const double b = reference[i];
    if (std::isfinite(b)) result.scale = std::max(result.scale, std::abs(b));
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    const double apart = std::abs(a - b);
    result.largest = std::max(result.largest, std::isnan(apart) ? HUGE_VAL : apart);
  }
  return result;
}

std::vector<Tensor> moved(const std::vector<Tensor>& tensors, Device device) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.to(device));
  return result;
}

std::vector<Tensor> widened(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) {
    result.push_back(is_floating(tensor.dtype()) ? tensor.to(DType::float64) : tensor);
  }
  return result;
}

Device device_of(const Graph& graph) {
  for (ValueId id : graph.values()) {
    if (graph.value(id).tensor) return graph.value(id).tensor.device();
  }
  return graph.inputs().empty() ? kCpu : graph.value(graph.inputs()[0]).spec.device;
}

void compare_mode(const Schedule& schedule, const std::vector<Tensor>& inputs, bool training,
                  std::uint64_t seed, VerifyReport& report) {
  const Graph& before = schedule.original();
  const Graph& after = schedule.graph();
  const LowerOptions reference{training, DType::float64, kCpu};
  const LowerOptions bound{training, std::nullopt, std::nullopt};
  const auto device_inputs = moved(inputs, device_of(before));
  const auto wide_inputs = widened(inputs);
  const auto truth = run(before, wide_inputs, reference, seed);
  const auto rewritten = run(after, wide_inputs, reference, seed);
  const auto unscheduled = run(before, device_inputs, bound, seed);
  const auto scheduled = run(after, device_inputs, bound, seed);
  for (std::size_t i = 0; i < truth.size(); ++i) {
    const auto exact = truth[i].to_doubles();
    const auto plain = unscheduled[i].to_doubles();
    const auto fast = scheduled[i].to_doubles();
    const Difference meaning = difference(rewritten[i].to_doubles(), exact);
    OutputComparison c;
    c.training = training;
    c.output = static_cast<int>(i);
    c.max_abs_difference = difference(fast, plain).largest;
    c.scheduled_error = difference(fast, exact).largest;
    c.unscheduled_error = difference(plain, exact).largest;
    c.allowed_error = 2 * c.unscheduled_error +
                      kFloorRoundings * unit_roundoff(unscheduled[i].dtype()) * meaning.scale;
    c.float64_difference = meaning.largest;
    c.float64_allowed = kFloat64Tolerance * meaning.scale;
    c.ok = c.scheduled_error <= c.allowed_error && c.float64_difference <= c.float64_allowed;
    report.outputs.push_back(c);
  }
}

}  // namespace

bool VerifyReport::ok() const {
  for (const OutputComparison& output : outputs) {
    if (!output.ok) return false;
  }
  return true;
}

double VerifyReport::max_abs_difference() const {
  double largest = 0;
  for (const OutputComparison& output : outputs) {
    largest = std::max(largest, output.max_abs_difference);
  }
  return largest;
}

std::string VerifyReport::to_string() const {
  std::string text;
  for (const OutputComparison& c : outputs) {
    text += fmt::format(
        "{} output {} ({}): |scheduled - unscheduled| {:.3g}; error to float64 {:.3g}, allowed "
        "{:.3g} (unscheduled {:.3g}); meaning in float64 {:.3g}, allowed {:.3g}\n",
        c.ok ? "ok  " : "FAIL", c.output, c.training ? "training" : "eval", c.max_abs_difference,
        c.scheduled_error, c.allowed_error, c.unscheduled_error, c.float64_difference,
        c.float64_allowed);
  }
  std::string shapes;
  for (const auto& size : sizes) {
    shapes += fmt::format("{}({})", shapes.empty() ? "" : ", ", fmt::join(size, ", "));
  }
  return text + fmt::format("verified on inputs {} in {:.1f} ms\n", shapes, milliseconds);
}

VerifyReport verify(const Schedule& schedule, const VerifyOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  VerifyReport report;
  report.sizes = options.sizes.empty() ? choose_sizes(schedule.original()) : options.sizes;
  Generator generator(options.seed);
  const auto inputs = random_inputs(schedule.original(), report.sizes, generator);
  if (options.eval) compare_mode(schedule, inputs, false, options.seed, report);
  if (options.training) compare_mode(schedule, inputs, true, options.seed, report);
  report.milliseconds =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace tenon
