#include "schedule/trials/trial.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <string_view>

#include "schedule/regions/region_graph.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// Of large and special inputs.
constexpr double kLarge = 2000;
constexpr double kSmall = 1e-6;
/// Rows of `offset` inputs are this many of their deviations away from zero.
constexpr double kOffset = 3000;
/// Integers that nothing is known of.
constexpr IntegerWindow kAnyInteger = {-9, 21};
/// Longer tables are no larger for what can go wrong.
constexpr std::int64_t kLongestWindow = 1 << 20;

Extents evaluated(const Shape& shape, const DimBindings& bindings) {
  Extents sizes;
  for (const Dim& dim : shape) sizes.push_back(dim.evaluate(bindings));
  return sizes;
}

Tensor from_doubles(const std::vector<double>& values, const Extents& sizes, DType dtype) {
  const Shape shape(std::vector<Dim>(sizes.begin(), sizes.end()));
  return tensor(std::span<const double>(values), shape, {dtype, kCpu});
}

/// The number moved to where its value may be; `share`, from 0 to 1, chooses between two bounds.
double within(const ValueRange& range, double number, double share) {
  const bool low = std::isfinite(range.low);
  const bool high = std::isfinite(range.high);
  if (number >= range.low && number <= range.high) return number;
  if (low && high) return range.low + (range.high - range.low) * share;
  return low ? range.low + std::abs(number) : range.high - std::abs(number);
}

/// What a buffer's values tell of what they may be.
struct BufferFacts {
  std::vector<double> choices;  // two different ones: a mask
  bool is_positive = true;
  bool is_finite = true;
  double low = HUGE_VAL;
  double high = -HUGE_VAL;
};

BufferFacts facts_of_buffer(const Tensor& buffer) {
  BufferFacts facts;
  bool few = true;
  for (const double value : buffer.to_doubles()) {
    facts.is_positive = facts.is_positive && value > 0;
    facts.is_finite = facts.is_finite && std::isfinite(value);
    facts.low = std::min(facts.low, value);
    facts.high = std::max(facts.high, value);
    if (few &&
        std::find(facts.choices.begin(), facts.choices.end(), value) == facts.choices.end()) {
      facts.choices.push_back(value);
      few = facts.choices.size() <= 2;
    }
  }
  std::sort(facts.choices.begin(), facts.choices.end());
  if (!few || facts.choices.size() < 2) facts.choices.clear();
  return facts;
}

/// A value that trials take as it is.
bool is_kept(const InputFacts& input, const BufferFacts& buffer) {
  return input.is_fresh || input.kind == ValueKind::constant ||
         (!buffer.is_finite && buffer.choices.empty());
}

std::size_t fingerprint(const Tensor& tensor) {
  const Tensor host = tensor.cpu().contiguous();
  const TensorView view = host.view_of_data();
  const auto bytes = static_cast<std::size_t>(view.numel()) * size_of(view.dtype);
  return std::hash<std::string_view>()({static_cast<const char*>(view.data), bytes});
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

std::string InputFacts::to_string() const {
  std::string text = fmt::format("{} {} {} {}", static_cast<int>(kind), spec.to_string(),
                                 facts.to_string(), is_additive_mask ? "mask" : "");
  if (!own || (kind == ValueKind::parameter && !is_fresh)) return text;
  const BufferFacts buffer = kind == ValueKind::constant ? BufferFacts{} : facts_of_buffer(own);
  if (is_kept(*this, buffer)) return text + fmt::format(" data {}", fingerprint(own));
  return text +
         fmt::format(" {} {} {}", fmt::join(buffer.choices, " "), buffer.is_positive,
                     is_floating(spec.dtype) ? "" : fmt::format("{} {}", buffer.low, buffer.high));
}

bool InputFacts::keeps_its_data() const {
  if (!own) return false;
  if (kind == ValueKind::parameter) return is_fresh;
  return kind == ValueKind::constant || is_fresh || is_kept(*this, facts_of_buffer(own));
}

TrialInputs::TrialInputs(const std::vector<InputFacts>& inputs, RegionConstants constants,
                         std::uint64_t seed)
    : inputs_(inputs), constants_(std::move(constants)), generator_(seed) {
  states_.resize(inputs.size());
  // What a node meets may have been moved or scaled by another one.
  const auto add = [&](double aim) {
    if (!std::isfinite(aim)) return;
    if (std::find(aims_.begin(), aims_.end(), aim) == aims_.end()) aims_.push_back(aim);
  };
  const auto& numbers = constants_.numbers;
  for (const double number : numbers) add(number);
  for (const double number : numbers) {
    for (const double factor : constants_.factors) add(number / factor);
    if (numbers.size() > 4) continue;
    for (const double other : numbers) {
      add(number + other);
      add(number - other);
    }
  }
}

void TrialInputs::set_graph(const Graph& graph) {
  graph_ = &graph;
  std::vector<std::int64_t> special{0, 1, -1};
  for (const double number : aims_) {
    if (std::rint(number) != number || std::abs(number) > 0x1p31) continue;
    for (const int step : {-1, 0, 1}) special.push_back(static_cast<std::int64_t>(number) + step);
  }
  // Where nothing bounds integers but the numbers that they meet.
  const auto [least, most] = std::minmax_element(special.begin(), special.end());
  const std::int64_t low = std::min(*least - 1, kAnyInteger.low);
  const std::int64_t end = std::max(*most + 2, kAnyInteger.low + kAnyInteger.width);
  std::vector<std::optional<IntegerWindow>> windows;
  for (const InputFacts& input : inputs_) {
    const Dim& table = input.facts.table_size;
    if (input.own) {
      windows.emplace_back();
    } else if (is_floating(input.spec.dtype)) {
      windows.push_back(IntegerWindow{0, kLongestWindow});
    } else if (table.same_as(-1)) {
      windows.push_back(IntegerWindow{low, end - low});
    } else {
      windows.push_back(
          IntegerWindow{0, std::clamp<std::int64_t>(hint_of(table), 1, kLongestWindow)});
    }
  }
  indices_.emplace(graph, std::move(windows), std::move(special));
}

bool TrialInputs::has_masks() const {
  return std::any_of(inputs_.begin(), inputs_.end(), [](const InputFacts& input) {
    return input.is_additive_mask || input.facts.may_be_nan || input.spec.dtype == DType::boolean;
  });
}

std::vector<Tensor> TrialInputs::make(InputValues values) {
  std::vector<Tensor> result;
  for (std::size_t i = 0; i < inputs_.size(); ++i) result.push_back(make_input(i, values));
  misfit_ = indices_->draw(result, generator_);
  if (values == InputValues::masked && indices_->all_known()) hide_rows(result);
  return result;
}

std::vector<Tensor> TrialInputs::cotangents() {
  std::vector<Tensor> result;
  for (const ValueId id : graph_->outputs()) {
    const TensorSpec& spec = graph_->value(id).spec;
    const Extents sizes = evaluated(spec.shape, {});
    result.push_back(is_floating(spec.dtype)
                         ? from_doubles(normal(sizes.product()), sizes, DType::float64)
                         : Tensor());
  }
  return result;
}

/// Zeros for integers, which are drawn together.
Tensor TrialInputs::make_input(std::size_t i, InputValues values) {
  const InputFacts& input = inputs_[i];
  const TensorSpec& spec = graph_->value(graph_->inputs()[i]).spec;
  const Extents sizes = evaluated(spec.shape, {});
  // A bias, where the rest of a row is zero, is what a value behind is.
  const bool is_bias = input.kind == ValueKind::parameter && !input.is_fresh && sizes.size() < 2;
  if (input.own && !(is_bias && values == InputValues::aimed && !keeps_states_)) return state(i);
  if (spec.dtype == DType::boolean) return truth_values(sizes, values);
  if (!is_floating(spec.dtype)) return zeros(spec.shape, {spec.dtype});
  return numbers(input, sizes, values);
}

/// A parameter or buffer: drawn once.
Tensor TrialInputs::state(std::size_t i) {
  const InputFacts& input = inputs_[i];
  if (keeps_states_) return input.own;
  Tensor& known = states_[i];
  const Extents sizes = evaluated(graph_->value(graph_->inputs()[i]).spec.shape, {});
  if (known && known.layout().sizes == sizes) return known;
  const DType own_dtype = input.own.dtype();
  const DType dtype = is_floating(own_dtype) ? DType::float64 : own_dtype;
  if (input.kind == ValueKind::parameter && !input.is_fresh) {
    const std::int64_t rows = sizes.size() < 2 ? 1 : std::max<std::int64_t>(1, sizes[0]);
    const double fan_in =
        sizes.size() < 2 ? 1 : static_cast<double>(sizes.product()) / static_cast<double>(rows);
    return known = weights(sizes, 1 / std::sqrt(std::max(fan_in, 1.0)));
  }
  const BufferFacts buffer =
      input.kind == ValueKind::constant ? BufferFacts{} : facts_of_buffer(input.own);
  if (is_kept(input, buffer)) return known = input.own.detach().cpu().to(dtype);
  if (own_dtype == DType::boolean) return known = truth_values(sizes, InputValues::drawn);
  if (!buffer.choices.empty()) {
    std::vector<double> drawn = truth_values(sizes, InputValues::drawn).to_doubles();
    for (double& number : drawn) number = buffer.choices[number == 0 ? 0 : 1];
    return known = from_doubles(drawn, sizes, dtype);
  }
  std::vector<double> drawn = normal(sizes.product());
  const std::vector<double> share = uniform_numbers(sizes.product());
  for (std::size_t k = 0; k < drawn.size(); ++k) {
    if (!is_floating(dtype)) {
      // A number on its own has others around it; many are those of a table, or positions in one.
      const bool single = buffer.low == buffer.high;
      const double low = single ? std::max(0.0, buffer.low - 3) : buffer.low;
      drawn[k] = low + std::floor(share[k] * ((single ? buffer.high + 3 : buffer.high) - low + 1));
      if (single && drawn[k] == buffer.low) ++drawn[k];
    } else if (buffer.is_positive) {
      drawn[k] = std::exp(drawn[k] / 2);
    }
  }
  return known = from_doubles(drawn, sizes, dtype);
}

/// Numbers from -2·scale to 2·scale, about, of 7 digits in binary, so that every dtype holds them. Their
/// order is that of a multiplicative generator: large weights are drawn as fast as they are written.
Tensor TrialInputs::weights(const Extents& sizes, double scale) {
  const Shape shape(std::vector<Dim>(sizes.begin(), sizes.end()));
  Tensor drawn = empty(shape, {DType::float64, kCpu});
  auto* numbers = static_cast<double*>(drawn.view_of_data().data);
  const double unit = std::exp2(std::ceil(std::log2(scale))) / 64;
  const std::uint64_t stream = static_cast<std::uint64_t>(uniform_numbers(1)[0] * 0x1p52);
  constexpr std::int64_t kGrain = 1 << 16;
  parallel_ranges(sizes.product(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::uint64_t bits = (stream + static_cast<std::uint64_t>(i)) * 0x9e3779b97f4a7c15U;
      bits = (bits ^ (bits >> 29)) * 0xbf58476d1ce4e5b9U;
      numbers[i] = (static_cast<double>(bits >> 56) - 127.5) * unit;
    }
  });
  return drawn;
}

/// Makes rows of the integers all 1 and all 0, where the tables that they select from have these.
void TrialInputs::hide_rows(std::vector<Tensor>& inputs) const {
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const Tensor drawn = inputs[k];
    if (inputs_[k].own || is_floating(drawn.dtype()) || drawn.dtype() == DType::boolean) continue;
    const Extents& sizes = drawn.layout().sizes;
    // One axis is a number for each row of something else: a length, a class.
    const std::int64_t columns = sizes.size() < 2 ? 1 : std::max<std::int64_t>(1, sizes.back());
    std::vector<double> values = drawn.to_doubles();
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t row = i / static_cast<std::size_t>(columns);
      if (row % 3 < 2) values[i] = row % 3 == 0 ? 1 : 0;
    }
    inputs[k] = from_doubles(values, sizes, drawn.dtype());
    if (indices_->first_misfit(inputs)) inputs[k] = drawn;
  }
}

/// The aims in turn, of both signs, each met, just missed and missed by more on both sides; every
/// seventh number stays what it is.
double TrialInputs::next_aim(double number) {
  if (aims_.empty() || aimed_ % 7 == 6) {
    ++aimed_;
    return number;
  }
  constexpr double kSteps[] = {0, 0x1p-10, -0x1p-10, 0.3, -0.3, 0x1p-20, -0x1p-20};
  const std::size_t turn = aimed_ / 7 * 6 + aimed_ % 7;
  ++aimed_;
  const double aim = aims_[turn % aims_.size()];
  const std::size_t way = turn / aims_.size();
  const double signed_aim = way % 2 == 0 ? aim : -aim;
  return signed_aim + kSteps[way / 2 % std::size(kSteps)] * std::abs(aim);
}

std::size_t TrialInputs::aims_left() const {
  const std::size_t all = aims_.size() * 2 * 7 * 7 / 6 + 7;
  return aimed_ >= all ? 0 : all - aimed_;
}

Tensor TrialInputs::numbers(const InputFacts& input, const Extents& sizes, InputValues values) {
  std::vector<double> numbers = normal(sizes.product());
  const std::vector<double> choice = uniform_numbers(sizes.product());
  const std::vector<double> share = uniform_numbers(sizes.product());
  const std::int64_t columns = sizes.empty() ? 1 : std::max<std::int64_t>(1, sizes.back());
  const std::vector<double> row_choice = uniform_numbers(sizes.product() / columns);
  const auto shift = static_cast<std::size_t>(uniform_numbers(1)[0] * 1000);
  std::vector<double> hidden;
  if (values == InputValues::masked && input.is_additive_mask) {
    hidden = truth_values(sizes, InputValues::masked).to_doubles();
  }
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const double row = row_choice[i / static_cast<std::size_t>(columns)];
    const double sign = numbers[i] < 0 ? -1 : 1;
    double& number = numbers[i];
    switch (values) {
      case InputValues::drawn: break;
      case InputValues::masked:
        if (!hidden.empty() && hidden[i] == 0) number = -HUGE_VAL;
        break;
      case InputValues::positive: number = std::abs(number); break;
      case InputValues::spread: number = sign * std::pow(10, 13 * choice[i] - 6); break;
      case InputValues::large:
        // Two in five, one of each sign: so that even few numbers have both.
        if (i % 5 == 0) number = kLarge * (std::abs(number) + 0.5);
        if (i % 5 == 2) number = -kLarge * (std::abs(number) + 0.5);
        break;
      case InputValues::offset: number += (row < 0.5 ? -1 : 1) * kOffset * (1 + row); break;
      case InputValues::aimed:
        number = input.kind != ValueKind::parameter && row < 0.3 ? 0 : next_aim(number);
        break;
      case InputValues::special: {
        const double few[] = {number, 0, 1, -1, number * kSmall, number, 2, -2, 0.5};
        if (row < 0.15) {
          number = 0;
        } else if (row < 0.25) {
          number = 1;
        } else if (row < 0.35) {
          number *= kSmall;
        } else {
          number = few[(shift + i) % std::size(few)];
        }
        break;
      }
    }
    if (hidden.empty()) number = within(input.facts.range, number, share[i]);
  }
  if (input.facts.rows_sum_to_one) {
    for (std::size_t first = 0; first < numbers.size();
         first += static_cast<std::size_t>(columns)) {
      double sum = 0;
      for (std::int64_t i = 0; i < columns; ++i)
        sum += numbers[first + static_cast<std::size_t>(i)];
      for (std::int64_t i = 0; i < columns; ++i) {
        double& number = numbers[first + static_cast<std::size_t>(i)];
        number = sum > 0 ? number / sum : 1.0 / static_cast<double>(columns);
      }
    }
  }
  if (values == InputValues::masked && input.facts.may_be_nan) {
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      if (i / static_cast<std::size_t>(columns) % 3 == 1) numbers[i] = std::nan("");
    }
  }
  return from_doubles(numbers, sizes, DType::float64);
}

Tensor TrialInputs::truth_values(const Extents& sizes, InputValues values) {
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

std::vector<double> TrialInputs::normal(std::int64_t count) {
  return randn({count}, {DType::float64, kCpu}, &generator_).to_doubles();
}

std::vector<double> TrialInputs::uniform_numbers(std::int64_t count) {
  return uniform({count}, 0, 1, {DType::float64, kCpu}, &generator_).to_doubles();
}

std::vector<Tensor> draw_inputs(const Graph& graph, const DimBindings& sizes, std::uint64_t seed) {
  const std::vector<ValueFacts> facts = facts_of(graph);
  std::vector<InputFacts> inputs;
  std::vector<TensorSpec> specs;
  std::unordered_map<ValueId, int> places;
  const auto add = [&](ValueId id) {
    const Value& value = graph.value(id);
    places[id] = static_cast<int>(inputs.size());
    inputs.push_back({value.name, value.kind, value.spec, facts[static_cast<std::size_t>(id)],
                      value.tensor, false, false});
    const Extents extents = evaluated(value.spec.shape, sizes);
    specs.push_back(value.spec);
    specs.back().shape = Shape(std::vector<Dim>(extents.begin(), extents.end()));
  };
  for (const ValueId id : graph.inputs()) add(id);
  for (const ValueId id : graph.values()) {
    if (graph.value(id).tensor) add(id);
  }
  const Graph sized = region_graph({graph, graph.order(), places, {}}, specs, {sizes});
  TrialInputs drawn(inputs, {}, seed);
  drawn.keep_states();
  drawn.set_graph(sized);
  std::vector<Tensor> result = drawn.make(InputValues::drawn);
  result.resize(graph.inputs().size());
  return result;
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
