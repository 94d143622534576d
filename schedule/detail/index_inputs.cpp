#include "schedule/detail/index_inputs.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "graph/program.h"
#include "tensor/detail/check.h"
#include "tensor/functional.h"

namespace tenon::detail {
namespace {

/// Enough for a few inputs that one index is the sum of.
constexpr int kAttempts = 40;

bool is_integer(DType dtype) { return !is_floating(dtype) && dtype != DType::boolean; }

/// The values that `id` is computed from, itself included; nothing when a parameter or chance is among
/// them.
std::optional<std::unordered_set<ValueId>> sources_of(const Graph& graph, ValueId id) {
  std::unordered_set<ValueId> sources{id};
  std::vector<ValueId> open{id};
  while (!open.empty()) {
    const Value& value = graph.value(open.back());
    open.pop_back();
    if (value.kind == ValueKind::parameter) return std::nullopt;
    if (value.producer == kNone) continue;
    const Node& node = graph.node(value.producer);
    if (node.op->has(Trait::random)) return std::nullopt;
    for (const ValueId operand : node.inputs) {
      if (operand != kNone && sources.insert(operand).second) open.push_back(operand);
    }
  }
  return sources;
}

/// What the indices are, on the CPU in float64 and eval mode if the Graph holds for it; nothing
/// where the model itself throws, as it will in the trial.
std::optional<std::vector<double>> run_on_host(const Graph& graph,
                                               const std::vector<Tensor>& inputs) {
  std::vector<Tensor> wide;
  std::vector<TensorSpec> specs;
  for (const Tensor& input : inputs) {
    wide.push_back(is_floating(input.dtype()) ? input.cpu().to(DType::float64) : input.cpu());
    specs.push_back(wide.back().spec());
  }
  Generator generator(0);
  const bool training = graph.facts().held_mode().value_or(false);
  const LowerOptions options{.training = training, .float_dtype = DType::float64, .device = kCpu};
  try {
    return lower(graph, specs, options)->run(wide, generator).at(0).to_doubles();
  } catch (const InternalError&) {
    throw;
  } catch (const Error&) {
    return std::nullopt;
  }
}

DimBindings sizes_of(const Graph& graph, const std::vector<Tensor>& inputs) {
  DimBindings sizes;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Shape& shape = graph.value(graph.inputs()[i]).spec.shape;
    for (int axis = 0; axis < shape.rank(); ++axis) {
      std::vector<std::int64_t> symbol;
      shape[axis].collect_symbols(symbol);
      if (symbol.size() == 1) sizes[symbol[0]] = inputs[i].layout().sizes[axis];
    }
  }
  return sizes;
}

}  // namespace

std::string IndexMisfit::to_string() const {
  return fmt::format("{} selects by indices from {} to {}; what it selects from has {}", node,
                     smallest, largest, size);
}

IndexInputs::IndexInputs(const Graph& graph) {
  for (const ValueId id : graph.inputs()) {
    dtypes_.push_back(graph.value(id).spec.dtype);
  }
  for (const NodeId id : graph.order()) {
    if (graph.node(id).op->selects_by) add_selection(graph, graph.node(id));
  }
  reset();
}

void IndexInputs::add_selection(const Graph& graph, const Node& node) {
  const IndexOperand& operand = *node.op->selects_by;
  const ValueId index = node.inputs.at(static_cast<std::size_t>(operand.index));
  const auto sources = sources_of(graph, index);
  if (!sources) {
    all_known_ = false;
    return;
  }
  const Shape& table =
      graph.value(node.inputs.at(static_cast<std::size_t>(operand.table))).spec.shape;
  const std::int64_t axis = operand.axis ? operand.axis(node.attrs) : 0;
  Selection selection{graph.full_name(node.id), graph, table[static_cast<int>(axis)], {}, {}};
  selection.graph.drop_writes();
  selection.graph.set_outputs({index});
  selection.graph.eliminate_dead_code();
  if (operand.ignored) selection.ignored = static_cast<double>(operand.ignored(node.attrs));
  for (std::size_t i = 0; i < dtypes_.size(); ++i) {
    const bool reaches = is_integer(dtypes_[i]) && sources->contains(graph.inputs()[i]);
    if (reaches) selection.inputs.push_back(i);
  }
  selections_.push_back(std::move(selection));
}

void IndexInputs::reset() { windows_.assign(dtypes_.size(), {0, limit_}); }

void IndexInputs::limit(std::int64_t bound) {
  limit_ = bound;
  for (Window& window : windows_) window.width = std::min(window.width, bound);
}

Tensor IndexInputs::numbers(const Tensor& like, const Window& window, Generator& generator) const {
  std::vector<double> values =
      uniform({like.layout().numel()}, 0, 1, {DType::float64}, &generator).to_doubles();
  for (double& value : values) {
    value = static_cast<double>(window.low) + std::floor(value * static_cast<double>(window.width));
  }
  return tensor(std::span<const double>(values), like.shape(), {like.dtype()}).to(like.device());
}

std::optional<IndexMisfit> IndexInputs::draw(std::vector<Tensor>& inputs, Generator& generator) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (is_integer(dtypes_[i])) inputs[i] = numbers(inputs[i], windows_[i], generator);
  }
  std::optional<IndexMisfit> misfit = first_misfit(inputs);
  for (int attempt = 0; misfit && attempt < kAttempts; ++attempt) {
    if (!narrow_windows(*misfit)) break;
    for (const std::size_t i : misfit->inputs) {
      inputs[i] = numbers(inputs[i], windows_[i], generator);
    }
    misfit = first_misfit(inputs);
  }
  return misfit;
}

std::optional<IndexMisfit> IndexInputs::first_misfit(const std::vector<Tensor>& inputs) const {
  for (const Selection& selection : selections_) {
    const std::int64_t size = selection.size.evaluate(sizes_of(selection.graph, inputs));
    IndexMisfit misfit{selection.node, size, HUGE_VAL, -HUGE_VAL, selection.inputs};
    const auto indices = run_on_host(selection.graph, inputs);
    if (!indices) return IndexMisfit{selection.node, size, 0, 0, {}};
    for (const double index : *indices) {
      if (index == selection.ignored) continue;
      misfit.smallest = std::min(misfit.smallest, index);
      misfit.largest = std::max(misfit.largest, index);
    }
    const bool has_any = misfit.smallest <= misfit.largest;
    if (has_any && (misfit.smallest < 0 || misfit.largest >= static_cast<double>(size))) {
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
      Window& window = windows_[i];
      const auto share =
          static_cast<std::int64_t>(static_cast<double>(window.width) * size / spread);
      changed = changed || window.width > 1;
      window.width = std::max<std::int64_t>(1, std::min(share, window.width - 1));
    }
    return changed;
  }
  Window& window = windows_[misfit.inputs[0]];
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
