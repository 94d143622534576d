#include "schedule/trials/index_inputs.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <unordered_set>

#include "schedule/regions/region_graph.h"
#include "schedule/trials/reference_run.h"
#include "tensor/functional.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// Enough for a few inputs that one index is the sum of.
constexpr int kAttempts = 60;
/// So few that a number comes more than once.
constexpr std::int64_t kFew = 7;

bool is_integer(DType dtype) { return !is_floating(dtype) && dtype != DType::boolean; }

/// What an index is computed from.
struct Sources {
  std::vector<NodeId> nodes;           // in program order
  std::unordered_set<ValueId> inputs;  // of the Graph
  std::unordered_set<ValueId>
      elements;  // those of which an element of the index is an element, cast
  bool has_chance = false;
};

Sources sources_of(const Graph& graph, ValueId id) {
  Sources sources;
  std::unordered_map<ValueId, bool> seen{{id, true}};  // whether elementwise ops alone lead there
  std::vector<ValueId> open{id};
  std::unordered_set<NodeId> nodes;
  while (!open.empty()) {
    const ValueId value = open.back();
    const bool elementwise = seen.at(value);
    open.pop_back();
    const NodeId producer = graph.value(value).producer;
    if (producer == kNone) {
      sources.inputs.insert(value);
      if (elementwise) sources.elements.insert(value);
      continue;
    }
    const Node& node = graph.node(producer);
    nodes.insert(producer);
    sources.has_chance |= node.op->has(Trait::random);
    const bool moves = node.op->view != nullptr || node.op->has(Trait::elementwise) ||
                       node.op->has(Trait::storage_dtypes);
    for (const ValueId operand : node.inputs) {
      if (operand == kNone) continue;
      const auto [known, is_new] = seen.emplace(operand, elementwise && moves);
      if (is_new || (elementwise && moves && !known->second)) {
        known->second = elementwise && moves;
        open.push_back(operand);
      }
    }
  }
  for (const NodeId node : graph.order()) {
    if (nodes.contains(node)) sources.nodes.push_back(node);
  }
  return sources;
}

}  // namespace

std::string IndexMisfit::to_string() const {
  return fmt::format("{} selects by indices from {} to {}; what it selects from has {}", node,
                     smallest, largest, size);
}

IndexInputs::IndexInputs(const Graph& graph, std::vector<std::optional<IntegerWindow>> windows,
                         std::vector<std::int64_t> special)
    : windows_(std::move(windows)), special_(std::move(special)) {
  for (std::size_t i = 0; i < graph.inputs().size(); ++i) {
    dtypes_.push_back(graph.value(graph.inputs()[i]).spec.dtype);
    draws_.push_back(windows_[i] && is_integer(dtypes_[i]));
    if (windows_[i] && dtypes_[i] == DType::uint8) {
      windows_[i]->low = std::max<std::int64_t>(0, windows_[i]->low);
    }
  }
  for (const NodeId id : graph.order()) {
    if (graph.node(id).op->selects_by) add_selection(graph, graph.node(id));
  }
}

void IndexInputs::add_selection(const Graph& graph, const Node& node) {
  const IndexOperand& operand = *node.op->selects_by;
  const ValueId index = node.inputs.at(static_cast<std::size_t>(operand.index));
  const Sources sources = sources_of(graph, index);
  if (sources.has_chance) {
    all_known_ = false;
    return;
  }
  Selection selection;
  selection.node = graph.full_name(node.id);
  std::unordered_map<ValueId, int> places;
  std::vector<TensorSpec> specs;
  for (std::size_t i = 0; i < graph.inputs().size(); ++i) {
    const ValueId id = graph.inputs()[i];
    if (!sources.inputs.contains(id)) continue;
    if (!windows_[i] && is_floating(dtypes_[i])) {  // a parameter
      all_known_ = false;
      return;
    }
    places[id] = static_cast<int>(specs.size());
    specs.push_back(graph.value(id).spec);
    selection.sources.push_back(i);
  }
  selection.graph = region_graph({graph, sources.nodes, places, {index}}, specs, {});
  const Shape& table =
      graph.value(node.inputs.at(static_cast<std::size_t>(operand.table))).spec.shape;
  selection.size = table[static_cast<int>(operand.axis ? operand.axis(node.attrs) : 0)].value();
  if (operand.ignored) {
    const std::int64_t ignored = operand.ignored(node.attrs);
    selection.ignored = static_cast<double>(ignored);
    special_.push_back(ignored);
  }
  for (const std::size_t i : selection.sources) {
    if (!windows_[i] || dtypes_[i] == DType::boolean) continue;
    if (is_floating(dtypes_[i]) && !sources.elements.contains(graph.inputs()[i])) continue;
    draws_[i] = true;
    selection.inputs.push_back(i);
    IntegerWindow& window = *windows_[i];
    const std::int64_t end =
        std::min(window.low + window.width, std::max<std::int64_t>(selection.size, 1));
    window.low = std::max<std::int64_t>(window.low, 0);
    window.width = std::max<std::int64_t>(end - window.low, 1);
  }
  selections_.push_back(std::move(selection));
}

void IndexInputs::limit(std::int64_t bound) {
  for (auto& window : windows_) {
    if (window) *window = {0, std::min(window->width, bound)};
  }
}

/// A third of them from all of the window, a third from a few at its lower end, so that numbers come
/// more than once, the rest special ones.
Tensor IndexInputs::numbers(std::size_t input, const Tensor& like, Generator& generator) const {
  const IntegerWindow& window = *windows_[input];
  std::vector<double> special;
  if (outsiders_) special = (*outsiders_)[input];
  for (const std::int64_t number : special_) {
    if (number >= window.low && number - window.low < window.width) {
      special.push_back(static_cast<double>(number));
    }
  }
  const std::int64_t count = like.layout().numel();
  std::vector<double> values = uniform({count}, 0, 1, {DType::float64}, &generator).to_doubles();
  const std::vector<double> choice =
      uniform({count}, 0, 1, {DType::float64}, &generator).to_doubles();
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!special.empty() && choice[i] < 0.3) {
      const auto which = static_cast<std::size_t>(values[i] * static_cast<double>(special.size()));
      values[i] = special[std::min(which, special.size() - 1)];
      continue;
    }
    const std::int64_t width = choice[i] < 0.65 ? std::min(kFew, window.width) : window.width;
    values[i] =
        static_cast<double>(window.low) + std::floor(values[i] * static_cast<double>(width));
  }
  return tensor(std::span<const double>(values), like.shape(), {like.dtype()}).to(like.device());
}

std::optional<IndexMisfit> IndexInputs::draw(std::vector<Tensor>& inputs, Generator& generator) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (draws_[i]) inputs[i] = numbers(i, inputs[i], generator);
  }
  std::optional<IndexMisfit> misfit = first_misfit(inputs);
  for (int attempt = 0; misfit && attempt < kAttempts; ++attempt) {
    if (!narrow_windows(*misfit)) break;
    for (const std::size_t i : misfit->inputs) {
      inputs[i] = numbers(i, inputs[i], generator);
    }
    misfit = first_misfit(inputs);
  }
  if (!misfit && !outsiders_ && !selections_.empty()) {
    find_outsiders(inputs);
    return draw(inputs, generator);
  }
  return misfit;
}

/// Tries each number in all places.
void IndexInputs::find_outsiders(const std::vector<Tensor>& inputs) {
  outsiders_.emplace(inputs.size());
  for (const Selection& selection : selections_) {
    for (const std::size_t i : selection.inputs) {
      if (inputs[i].layout().numel() == 0) continue;
      for (const std::int64_t number : special_) {
        const auto value = static_cast<double>(number);
        auto& known = (*outsiders_)[i];
        const bool inside =
            number >= windows_[i]->low && number - windows_[i]->low < windows_[i]->width;
        const bool is_unsigned = dtypes_[i] == DType::uint8 && number < 0;
        if (inside || is_unsigned || std::find(known.begin(), known.end(), value) != known.end()) {
          continue;
        }
        std::vector<Tensor> tried = inputs;
        const std::vector<double> values(static_cast<std::size_t>(inputs[i].layout().numel()),
                                         value);
        tried[i] = tensor(std::span<const double>(values), inputs[i].shape(), {inputs[i].dtype()});
        if (!first_misfit(tried)) known.push_back(value);
      }
    }
  }
}

std::optional<IndexMisfit> IndexInputs::first_misfit(const std::vector<Tensor>& inputs) const {
  for (const Selection& selection : selections_) {
    IndexMisfit misfit{selection.node, selection.size, HUGE_VAL, -HUGE_VAL, selection.inputs};
    std::vector<Tensor> sources;
    for (const std::size_t i : selection.sources) sources.push_back(inputs[i].cpu());
    std::vector<double> indices;
    try {
      const ReferenceRun run(selection.graph, std::vector<bool>(sources.size(), false));
      indices = run.run(sources, {}, {.gradients = false}).outputs.at(0).to_doubles();
    } catch (const InternalError&) {
      throw;
    } catch (const Error&) {  // the model itself throws, as it will in the trial
      return IndexMisfit{selection.node, selection.size, 0, 0, {}};
    }
    for (const double index : indices) {
      if (index == selection.ignored) continue;
      misfit.smallest = std::min(misfit.smallest, index);
      misfit.largest = std::max(misfit.largest, index);
    }
    const bool has_any = misfit.smallest <= misfit.largest;
    if (has_any && (misfit.smallest < 0 || misfit.largest >= static_cast<double>(selection.size))) {
      return misfit;
    }
  }
  return std::nullopt;
}

/// Brings the indices closer together where they do not fit into the table at all, else moves them
/// there. False when there is nothing left to change.
bool IndexInputs::narrow_windows(const IndexMisfit& misfit) {
  if (misfit.inputs.empty() || misfit.size == 0) return false;
  const auto size = static_cast<double>(misfit.size);
  const double spread = misfit.largest - misfit.smallest + 1;
  if (spread > size) {
    bool changed = false;
    for (const std::size_t i : misfit.inputs) {
      IntegerWindow& window = *windows_[i];
      const auto share =
          static_cast<std::int64_t>(static_cast<double>(window.width) * size / spread);
      changed = changed || window.width > 1;
      window.width = std::max<std::int64_t>(1, std::min(share, window.width - 1));
    }
    return changed;
  }
  IntegerWindow& window = *windows_[misfit.inputs[0]];
  const auto shift =
      static_cast<std::int64_t>(misfit.smallest < 0 ? -misfit.smallest : size - 1 - misfit.largest);
  const std::int64_t below_zero = std::min<std::int64_t>(0, window.low + shift);
  if (below_zero < 0 && window.width > 1) {  // fewer numbers, before any below zero
    window.low = 0;
    window.width = std::max<std::int64_t>(1, window.width + below_zero);
    return true;
  }
  window.low += shift;
  return below_zero == 0 || dtypes_[misfit.inputs[0]] != DType::uint8;
}

}  // namespace tenon::detail
