#include "schedule/verification.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <unordered_map>

#include "graph/program.h"
#include "schedule/detail/state.h"
#include "schedule/joint_graph.h"
#include "tensor/detail/check.h"
#include "tensor/random.h"

namespace tenon {
namespace {

/// Roundings by which two correct float computations of one output may differ in the last place.
constexpr double kFloorRoundings = 4;
/// The same for a gradient, which sums over many rows.
constexpr double kGradientFloorRoundings = 16;
/// The same for two float64 computations of a whole model, relative to the largest output.
constexpr double kFloat64Tolerance = 1e-10;
/// The same for a gradient, relative to the largest of all gradients.
constexpr double kFloat64Noise = 1e-13;

using Sizes = std::vector<std::vector<std::int64_t>>;

/// Values for the symbols of the inputs: bound ones follow from the free ones. Nothing when a guard
/// does not hold for them.
std::optional<DimBindings> assign_sizes(const Graph& graph,
                                        const std::vector<std::int64_t>& candidates) {
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
  return bindings;
}

DimBindings bind_sizes(const Graph& graph, const Sizes& sizes) {
  DimBindings bindings;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const Shape& shape = graph.value(graph.inputs().at(i)).spec.shape;
    for (int axis = 0; axis < shape.rank(); ++axis) {
      std::vector<std::int64_t> symbol;
      shape[axis].collect_symbols(symbol);
      if (symbol.size() == 1) bindings[symbol[0]] = sizes[i].at(static_cast<std::size_t>(axis));
    }
  }
  return bindings;
}

Shape evaluated(const Shape& shape, const DimBindings& bindings) {
  Shape sizes;
  for (const Dim& dim : shape) sizes.push_back(dim.evaluate(bindings));
  return sizes;
}

DimBindings choose_sizes(const Graph& graph, const Sizes& given) {
  if (!given.empty()) return bind_sizes(graph, given);
  if (const auto small = assign_sizes(graph, {3, 7, 5, 11})) return *small;
  return *assign_sizes(graph, {});
}

Tensor random_tensor(const TensorSpec& spec, const DimBindings& bindings, Generator& generator) {
  const Shape shape = evaluated(spec.shape, bindings);
  if (is_floating(spec.dtype)) return randn(shape, {spec.dtype, kCpu}, &generator);
  // Indices and flags: 0 and 1 are valid whatever they select.
  return cast(uniform(shape, 0, 2, {}, &generator), spec.dtype);
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

/// What one Graph gave in one mode: its bound kernels' results and its meaning in float64.
struct Results {
  std::unordered_map<std::string, Tensor> bound;
  std::unordered_map<std::string, Tensor> float64;
};

std::unordered_map<std::string, Tensor> by_name(const GradientGraph& gradients,
                                                const std::vector<Tensor>& results) {
  std::unordered_map<std::string, Tensor> named;
  for (std::size_t i = 0; i < results.size(); ++i) {
    named.emplace(gradients.outputs[i], results[i]);
  }
  return named;
}

Results run_both(const GradientGraph& gradients, const std::vector<Tensor>& inputs, bool training,
                 std::uint64_t seed) {
  const LowerOptions reference{training, DType::float64, kCpu};
  const LowerOptions bound{training, std::nullopt, std::nullopt};
  const auto device_inputs = moved(inputs, device_of(gradients.graph));
  Results results;
  results.float64 = by_name(gradients, run(gradients.graph, widened(inputs), reference, seed));
  results.bound = by_name(gradients, run(gradients.graph, device_inputs, bound, seed));
  return results;
}

std::vector<double> values_of(const std::unordered_map<std::string, Tensor>& results,
                              const std::string& name, std::size_t count) {
  const auto found = results.find(name);
  // A gradient that is undefined on one side counts as zero.
  return found == results.end() ? std::vector<double>(count, 0.0) : found->second.to_doubles();
}

/// The largest gradient: rounding noise in one that is zero in truth comes from terms of this size.
double largest_gradient(const std::unordered_map<std::string, Tensor>& results) {
  double largest = 0;
  for (const auto& [name, tensor] : results) {
    if (!name.starts_with("gradient")) continue;
    const auto values = tensor.to_doubles();
    largest = std::max(largest, difference(values, values).scale);
  }
  return largest;
}

void compare_mode(const GradientGraph& before, const GradientGraph& after,
                  const std::vector<Tensor>& inputs, bool training, std::uint64_t seed,
                  VerifyReport& report) {
  const Results plain = run_both(before, inputs, training, seed);
  const Results scheduled = run_both(after, inputs, training, seed);
  const double noise_terms = largest_gradient(plain.float64);
  std::vector<std::string> names = before.outputs;
  for (const std::string& name : after.outputs) {
    if (!plain.bound.contains(name)) names.push_back(name);
  }
  for (const std::string& name : names) {
    const bool in_plain = plain.bound.contains(name);
    const Tensor& known = (in_plain ? plain : scheduled).bound.at(name);
    const auto count = static_cast<std::size_t>(known.layout().numel());
    const auto exact = values_of(plain.float64, name, count);
    const auto unscheduled = values_of(plain.bound, name, count);
    const auto fused = values_of(scheduled.bound, name, count);
    const Difference meaning = difference(values_of(scheduled.float64, name, count), exact);
    const bool is_gradient = name.starts_with("gradient");
    const double terms = is_gradient ? noise_terms : 0;
    const double floor = is_gradient ? kGradientFloorRoundings : kFloorRoundings;
    Comparison c;
    c.name = name;
    c.training = training;
    c.max_abs_difference = difference(fused, unscheduled).largest;
    c.scheduled_error = difference(fused, exact).largest;
    c.unscheduled_error = difference(unscheduled, exact).largest;
    c.float64_difference = meaning.largest;
    c.float64_allowed = kFloat64Tolerance * meaning.scale + kFloat64Noise * terms;
    c.allowed_error = 2 * c.unscheduled_error +
                      floor * unit_roundoff(known.dtype()) * std::max(meaning.scale, terms);
    // A float64 model is its own reference, which is no better than the schedule's results.
    if (known.dtype() == DType::float64) {
      c.allowed_error = std::max(c.allowed_error, c.float64_allowed);
    }
    c.ok = c.scheduled_error <= c.allowed_error && c.float64_difference <= c.float64_allowed;
    report.results.push_back(c);
  }
}

/// Every mask that training draws: its site and probability.
std::set<std::string> masks_of(const Graph& graph) {
  std::set<std::string> masks;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (!draws_mask(node)) continue;
    const std::size_t p = std::min(node.attrs.find("p"), node.attrs.find("dropout_p"));
    masks.insert(fmt::format("site {} p {}", to_string(node.attrs.value(node.attrs.find("site"))),
                             to_string(node.attrs.value(p))));
  }
  return masks;
}

void compare_masks(const Graph& before, const Graph& after, VerifyReport& report) {
  const std::set<std::string> own = masks_of(before);
  const std::set<std::string> rewritten = masks_of(after);
  std::set_difference(own.begin(), own.end(), rewritten.begin(), rewritten.end(),
                      std::back_inserter(report.masks_missing));
  std::set_difference(rewritten.begin(), rewritten.end(), own.begin(), own.end(),
                      std::back_inserter(report.masks_added));
}

}  // namespace

bool VerifyReport::ok() const {
  return masks_missing.empty() && masks_added.empty() &&
         std::all_of(results.begin(), results.end(), [](const Comparison& c) { return c.ok; });
}

double VerifyReport::max_abs_difference() const {
  double largest = 0;
  for (const Comparison& result : results) {
    largest = std::max(largest, result.max_abs_difference);
  }
  return largest;
}

std::string VerifyReport::to_string() const {
  std::string text;
  for (const Comparison& c : results) {
    text += fmt::format(
        "{} {} ({}): |scheduled - unscheduled| {:.3g}; error to float64 {:.3g}, allowed "
        "{:.3g} (unscheduled {:.3g}); meaning in float64 {:.3g}, allowed {:.3g}\n",
        c.ok ? "ok  " : "FAIL", c.name, c.training ? "training" : "eval", c.max_abs_difference,
        c.scheduled_error, c.allowed_error, c.unscheduled_error, c.float64_difference,
        c.float64_allowed);
  }
  for (const std::string& mask : masks_missing) {
    text += fmt::format("FAIL a dropout mask of the model is not drawn: {}\n", mask);
  }
  for (const std::string& mask : masks_added) {
    text += fmt::format("FAIL a dropout mask is drawn that the model does not: {}\n", mask);
  }
  std::string shapes;
  for (const auto& size : sizes) {
    shapes += fmt::format("{}({})", shapes.empty() ? "" : ", ", fmt::join(size, ", "));
  }
  return text + fmt::format("verified on inputs {} in {:.1f} ms\n", shapes, milliseconds);
}

VerifyReport verify(const Schedule& schedule, const VerifyOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Graph& original = schedule.original();
  const ModuleTree tree = detail::module_tree(schedule.model());
  const GradientGraph before = differentiate(original, tree);
  const GradientGraph after = differentiate(schedule.graph(), tree);
  const DimBindings bindings = choose_sizes(original, options.sizes);
  VerifyReport report;
  Generator generator(options.seed);
  std::vector<Tensor> inputs;
  for (ValueId id : original.inputs()) {
    inputs.push_back(random_tensor(original.value(id).spec, bindings, generator));
    report.sizes.push_back(inputs.back().shape().hints());
  }
  for (std::size_t output : before.cotangents) {
    inputs.push_back(
        random_tensor(original.value(original.outputs()[output]).spec, bindings, generator));
  }
  if (options.eval) compare_mode(before, after, inputs, false, options.seed, report);
  if (options.training) compare_mode(before, after, inputs, true, options.seed, report);
  compare_masks(original, schedule.graph(), report);
  report.milliseconds =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace tenon
