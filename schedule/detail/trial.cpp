#include "schedule/detail/trial.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "tensor/detail/check.h"
#include "tensor/interpreter.h"

namespace tenon::detail {
namespace {

/// How far `shifted` moves a state, relative to its root mean square or kSmallestShift.
constexpr double kShift = 0.25;
constexpr double kSmallestShift = 0.1;
constexpr double kMatrixScale = 32;
/// Of large and special inputs.
constexpr double kLarge = 2000;
constexpr double kSmall = 1e-6;

Extents evaluated(const Shape& shape, const DimBindings& bindings) {
  Extents sizes;
  for (const Dim& dim : shape) sizes.push_back(dim.evaluate(bindings));
  return sizes;
}

/// The free symbols take the candidates in turn; the others follow. Nothing when a guard fails.
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
      bindings[id] =
          candidates.empty() ? detail::hint_of(dim) : candidates[next++ % candidates.size()];
  }
  for (const auto& [id, dim] : symbols) {
    if (!bindings.contains(id)) bindings[id] = dim.resolved().evaluate(bindings);
  }
  for (const DimGuard& guard : graph.guards()->guards) {
    if (!guard.holds(bindings)) return std::nullopt;
  }
  return bindings;
}

DimBindings bind_sizes(const Graph& graph, const std::vector<std::vector<std::int64_t>>& sizes) {
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

Tensor from_doubles(const std::vector<double>& values, const Extents& sizes, DType dtype) {
  const Shape shape(std::vector<Dim>(sizes.begin(), sizes.end()));
  return tensor(std::span<const double>(values), shape, {dtype, kCpu});
}

/// A few roundings away, in a direction that follows from the number itself.
double nudged_number(double number) {
  std::uint64_t bits = std::bit_cast<std::uint64_t>(number) * 0x9e3779b97f4a7c15U;
  bits ^= bits >> 32;
  const double direction = static_cast<double>(bits & 0xffffU) / 0x8000 - 1;
  return number * (1 + direction * kNudge);
}

Tensor nudged_tensor(const Tensor& tensor) {
  if (!tensor || !is_floating(tensor.dtype())) return tensor;
  std::vector<double> numbers = tensor.to_doubles();
  for (double& number : numbers) number = nudged_number(number);
  return from_doubles(numbers, tensor.layout().sizes, DType::float64);
}

double root_mean_square(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return values.empty() ? 0 : std::sqrt(sum / static_cast<double>(values.size()));
}

/// A buffer of two values says which elements count: a mask, no measure of anything.
bool is_mask(const std::vector<double>& values) {
  std::vector<double> distinct;
  for (const double value : values) {
    if (std::find(distinct.begin(), distinct.end(), value) == distinct.end()) {
      distinct.push_back(value);
    }
    if (distinct.size() > 2) return false;
  }
  return distinct.size() == 2;
}

bool all_finite(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

/// Infers shapes, opens fused ops, and notes the dropouts that are called.
class MaskRecorder final : public Interpreter {
 public:
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    const std::size_t site = attrs.find("site");
    if (op.has(Trait::random) && site != attrs.size()) {
      if (op.decompose != nullptr) return op.decompose(inputs, attrs);
      const Shape& shape = inputs[0].shape();
      const Dim columns = shape.rank() == 0 ? Dim(1) : shape[-1];
      const Dim rows = columns == 0 ? Dim(0) : shape.numel() / columns;
      masks.push_back(fmt::format(
          "site {} p {} on {} rows of {}", tenon::to_string(attrs.value(site)),
          tenon::to_string(attrs.value(attrs.find("p"))), rows.to_string(), columns.to_string()));
    }
    std::vector<const TensorSpec*> specs;
    for (const Tensor& input : inputs) specs.push_back(input ? &input.spec() : nullptr);
    std::vector<Tensor> outputs;
    for (TensorSpec& spec : infer(op, specs, attrs)) {
      outputs.push_back(Tensor::symbolic(std::move(spec)));
    }
    return outputs;
  }
  std::vector<std::string> masks;
};

}  // namespace

void TrialMaker::choose_sizes(const std::vector<std::vector<std::int64_t>>& given,
                              const std::vector<std::vector<std::int64_t>>& candidates) {
  if (!given.empty()) {
    take(bind_sizes(graph_, given));
    return;
  }
  for (const auto& numbers : candidates) {
    const auto found = assign_sizes(graph_, numbers);
    if (found && take(*found)) return;
  }
  const auto examples = assign_sizes(graph_, {});
  TENON_INTERNAL(examples.has_value(), "the example's own sizes break a guard");
  take(*examples);
}

bool TrialMaker::take(DimBindings sizes) {
  sizes_ = std::move(sizes);
  indices_.reset();
  inputs(InputValues::drawn);
  return !misfit_;
}

std::vector<Tensor> TrialMaker::inputs(InputValues values) {
  std::vector<Tensor> result;
  for (ValueId id : graph_.inputs()) result.push_back(input(id, values));
  misfit_ = indices_.draw(result, generator_);
  if (values == InputValues::masked && indices_.all_known()) hide_rows(result);
  return result;
}

bool TrialMaker::has_masks() const {
  return !additive_masks_.empty() ||
         std::any_of(graph_.inputs().begin(), graph_.inputs().end(),
                     [&](ValueId id) { return graph_.value(id).spec.dtype == DType::boolean; });
}

Trial TrialMaker::make(std::string name, InputValues values, StateChange change) {
  Trial trial;
  trial.name = std::move(name);
  trial.inputs = inputs(values);
  for (ValueId id : graph_.outputs()) {
    const TensorSpec& spec = graph_.value(id).spec;
    trial.cotangents.push_back(is_floating(spec.dtype) ? numbers(spec, InputValues::drawn)
                                                       : Tensor());
  }
  trial.states = states(change);
  return trial;
}

Trial TrialMaker::nudged(const Trial& trial) const {
  Trial moved;
  moved.name = trial.name;
  for (const Tensor& input : trial.inputs) moved.inputs.push_back(nudged_tensor(input));
  for (const Tensor& cotangent : trial.cotangents) {
    moved.cotangents.push_back(nudged_tensor(cotangent));
  }
  for (const ModuleTree::State& state : tree_.states) {
    if (!is_floating(state.tensor.dtype())) continue;
    const TensorImpl* identity = state.tensor.impl().get();
    const auto given = trial.states.find(identity);
    const Tensor& own = given == trial.states.end() ? state.tensor : given->second;
    moved.states.emplace(identity, nudged_tensor(own));
  }
  return moved;
}

Tensor TrialMaker::input(ValueId id, InputValues values) {
  const TensorSpec& spec = graph_.value(id).spec;
  const Extents sizes = evaluated(spec.shape, sizes_);
  if (spec.dtype == DType::boolean) return truth_values(sizes, values);
  if (!is_floating(spec.dtype)) {
    return zeros(Shape(std::vector<Dim>(sizes.begin(), sizes.end())), {spec.dtype});
  }
  const bool hides = values == InputValues::masked && additive_masks_.contains(id);
  return hides ? additive_mask(spec) : numbers(spec, values);
}

/// Makes rows of the integers all 1 and all 0, where the tables that they select from have these.
void TrialMaker::hide_rows(std::vector<Tensor>& inputs) const {
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const Tensor drawn = inputs[k];
    if (is_floating(drawn.dtype()) || drawn.dtype() == DType::boolean) continue;
    const Extents& sizes = drawn.layout().sizes;
    // One axis is a number for each row of something else: a length, a class.
    const std::int64_t columns = sizes.size() < 2 ? 1 : std::max<std::int64_t>(1, sizes.back());
    std::vector<double> values = drawn.to_doubles();
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t row = i / static_cast<std::size_t>(columns);
      if (row % 3 < 2) values[i] = row % 3 == 0 ? 1 : 0;
    }
    inputs[k] = from_doubles(values, sizes, drawn.dtype());
    if (indices_.first_misfit(inputs)) inputs[k] = drawn;
  }
}

/// Rows of drawn numbers, of -inf, and of both.
Tensor TrialMaker::additive_mask(const TensorSpec& spec) {
  const Extents sizes = evaluated(spec.shape, sizes_);
  std::vector<double> numbers = normal(sizes.product());
  const std::vector<double> hidden = truth_values(sizes, InputValues::masked).to_doubles();
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (hidden[i] == 0) numbers[i] = -HUGE_VAL;
  }
  return from_doubles(numbers, sizes, spec.dtype);
}

Tensor TrialMaker::numbers(const TensorSpec& spec, InputValues values) {
  const Extents sizes = evaluated(spec.shape, sizes_);
  if (values == InputValues::special) return special_numbers(spec, sizes);
  std::vector<double> numbers = normal(sizes.product());
  if (values == InputValues::large) {
    // Two in five, one of each sign: so that even few numbers have both.
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const double large = kLarge * (std::abs(numbers[i]) + 0.5);
      if (i % 5 == 0) numbers[i] = large;
      if (i % 5 == 2) numbers[i] = -large;
    }
  }
  return from_doubles(numbers, sizes, spec.dtype);
}

Tensor TrialMaker::special_numbers(const TensorSpec& spec, const Extents& sizes) {
  std::vector<double> numbers = normal(sizes.product());
  const std::vector<double> choice = uniform_numbers(sizes.product());
  const std::int64_t columns = sizes.empty() ? 1 : std::max<std::int64_t>(1, sizes.back());
  const std::vector<double> row_choice = uniform_numbers(sizes.product() / columns);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const double row = row_choice[i / static_cast<std::size_t>(columns)];
    double& number = numbers[i];
    if (row < 0.15) {
      number = 0;
    } else if (row < 0.25) {
      number = 1;
    } else if (row < 0.35) {
      number *= kSmall;
    } else if (choice[i] < 0.15) {
      number = 0;
    } else if (choice[i] < 0.3) {
      number = number < 0 ? -1 : 1;
    } else if (choice[i] < 0.4) {
      number *= kSmall;
    }
  }
  return from_doubles(numbers, sizes, spec.dtype);
}

Tensor TrialMaker::truth_values(const Extents& sizes, InputValues values) {
  std::vector<double> flags = uniform_numbers(sizes.product());
  const std::int64_t columns = sizes.empty() ? 1 : std::max<std::int64_t>(1, sizes.back());
  const std::vector<double> row_choice = uniform_numbers(sizes.product() / columns);
  for (std::size_t i = 0; i < flags.size(); ++i) {
    const std::size_t row = i / static_cast<std::size_t>(columns);
    const std::size_t column = i % static_cast<std::size_t>(columns);
    flags[i] = flags[i] < 0.5 ? 0 : 1;
    if (values == InputValues::masked) {
      if (row % 3 < 2) flags[i] = row % 3 == 0 ? 1 : 0;
    } else if (columns > 1) {
      // One of each in every row: a row of scores with nothing left is not a number.
      const auto first =
          static_cast<std::size_t>(row_choice[row] * static_cast<double>(columns - 1));
      if (column == first) flags[i] = 0;
      if (column == first + 1) flags[i] = 1;
    }
  }
  return from_doubles(flags, sizes, DType::boolean);
}

StateValues TrialMaker::states(StateChange change) {
  StateValues values;
  if (change == StateChange::none) return values;
  for (const ModuleTree::State& state : tree_.states) {
    if (!is_floating(state.tensor.dtype())) continue;
    std::vector<double> numbers = state.tensor.to_doubles();
    const bool is_parameter = state.kind == ValueKind::parameter;
    if (!is_parameter && (!all_finite(numbers) || is_mask(numbers))) continue;
    const Extents& sizes = state.tensor.layout().sizes;
    if (change == StateChange::scaled) {
      if (!is_parameter || sizes.size() < 2) continue;
      for (double& number : numbers) number *= kMatrixScale;
    } else {
      const double shift = kShift * std::max(root_mean_square(numbers), kSmallestShift);
      const std::vector<double> noise = normal(static_cast<std::int64_t>(numbers.size()));
      for (std::size_t i = 0; i < numbers.size(); ++i) {
        const bool positive = !is_parameter && numbers[i] > 0;
        numbers[i] =
            positive ? numbers[i] * std::exp(kShift * noise[i]) : numbers[i] + shift * noise[i];
      }
    }
    values.emplace(state.tensor.impl().get(), from_doubles(numbers, sizes, DType::float64));
  }
  return values;
}

std::vector<double> TrialMaker::normal(std::int64_t count) {
  return randn({count}, {DType::float64, kCpu}, &generator_).to_doubles();
}

std::vector<double> TrialMaker::uniform_numbers(std::int64_t count) {
  return uniform({count}, 0, 1, {DType::float64, kCpu}, &generator_).to_doubles();
}

Graph without_effects(const Graph& graph) {
  Graph silent = graph;
  for (const NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (!node.op->has(Trait::effect)) continue;
    silent.replace_all_uses(node.outputs.at(0), silent.node(id).inputs.at(0));
    silent.erase_node(id);
  }
  return silent;
}

std::vector<std::string> masks_of(const Graph& graph, const DimBindings& sizes) {
  MaskRecorder recorder;
  const InterpreterGuard guard(recorder);
  for (const NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (!draws_mask(node)) continue;
    if (node.op->operands.empty()) {
      const Extents extents = evaluated(graph.value(node.outputs.at(0)).spec.shape, sizes);
      recorder.masks.push_back(fmt::format("site {} {} of ({})", mask_of(node)->site, node.op->name,
                                           fmt::join(extents, ", ")));
      continue;
    }
    std::vector<Tensor> inputs;
    for (const ValueId operand : node.inputs) {
      if (operand == kNone) {
        inputs.emplace_back();
        continue;
      }
      TensorSpec spec = graph.value(operand).spec;
      const Extents extents = evaluated(spec.shape, sizes);
      spec.shape = Shape(std::vector<Dim>(extents.begin(), extents.end()));
      inputs.push_back(Tensor::symbolic(std::move(spec)));
    }
    recorder.apply(*node.op, inputs, node.attrs);
  }
  std::sort(recorder.masks.begin(), recorder.masks.end());
  return std::move(recorder.masks);
}

}  // namespace tenon::detail
