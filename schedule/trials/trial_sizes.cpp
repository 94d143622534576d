#include "schedule/trials/trial_sizes.h"

#include <algorithm>

#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// Numbers that the free size symbols take in turn.
const std::vector<std::int64_t>& small_sizes() {
  static const auto& sizes = *new std::vector<std::int64_t>{3, 7, 5, 11};  // never destroyed
  return sizes;
}
const std::vector<std::vector<std::int64_t>>& other_sizes() {
  static const auto& sizes =
      *new std::vector<std::vector<std::int64_t>>{{1, 9, 2, 6}, {2, 9, 4, 6}, {5, 3, 7, 2}};
  return sizes;
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

}  // namespace

TrialSizes::TrialSizes(const Graph& graph, const std::vector<std::vector<std::int64_t>>& given)
    : graph_(graph) {
  for (const ValueId id : graph.inputs()) {
    for (const Dim& dim : graph.value(id).spec.shape) {
      std::vector<std::int64_t> ids;
      dim.collect_symbols(ids);
      if (ids.size() != 1) continue;
      std::vector<std::int64_t> free;
      dim.resolved().collect_symbols(free);
      const bool is_known = std::any_of(free_.begin(), free_.end(),
                                        [&](const Symbol& known) { return known.id == ids[0]; });
      if (free.size() != 1 || free[0] != ids[0]) {
        bound_.emplace_back(ids[0], dim.resolved());
      } else if (!is_known) {
        free_.push_back({ids[0], hint_of(dim)});
      }
    }
  }
  has_batch_ = free_.size() > 1;
  const auto hints = assign([](std::size_t, const Symbol& symbol) { return symbol.hint; });
  TENON_INTERNAL(hints.has_value(), "the example's own sizes break a guard");
  hints_ = *hints;
  if (!given.empty()) given_ = bind_sizes(graph, given);
}

template <class SizeOf>
std::optional<DimBindings> TrialSizes::assign(const SizeOf& size_of) const {
  DimBindings bindings;
  std::size_t next = 0;
  for (const Symbol& symbol : free_) {
    const std::int64_t size = size_of(next++, symbol);
    if (size < 1 && symbol.hint >= 1) return std::nullopt;
    bindings[symbol.id] = size;
  }
  for (const auto& [id, dim] : bound_) bindings[id] = dim.evaluate(bindings);
  for (const DimGuard& guard : graph_.guards()->guards) {
    if (!guard.holds(bindings)) return std::nullopt;
  }
  return bindings;
}

/// Sizes of 1 in the example may have to be 1, for what they are broadcast to.
std::optional<DimBindings> TrialSizes::in_turn(const std::vector<std::int64_t>& candidates) const {
  for (const bool keeps_ones : {false, true}) {
    std::size_t next = 0;
    const auto found = assign([&](std::size_t, const Symbol& symbol) {
      return keeps_ones && symbol.hint == 1 ? 1 : candidates[next++ % candidates.size()];
    });
    if (found) return found;
  }
  return std::nullopt;
}

std::vector<DimBindings> TrialSizes::multiples() const {
  std::vector<DimBindings> found;
  if (given_ || in_turn(small_sizes())) return found;
  const auto add = [&](const std::optional<DimBindings>& sizes) {
    if (!sizes || *sizes == hints_) return;
    if (std::find(found.begin(), found.end(), *sizes) == found.end()) found.push_back(*sizes);
  };
  const auto scaled = [](std::int64_t hint, int factor) {
    return factor < 0 ? (hint % -factor == 0 ? hint / -factor : 0) : hint * factor;
  };
  for (const int factor : {-2, 2, 3}) {
    add(assign([&](std::size_t, const Symbol& symbol) { return scaled(symbol.hint, factor); }));
    for (std::size_t one = 0; one < free_.size(); ++one) {
      add(assign([&](std::size_t i, const Symbol& symbol) {
        return i == one ? scaled(symbol.hint, factor) : symbol.hint;
      }));
    }
  }
  return found;
}

DimBindings TrialSizes::fallback() const {
  const std::vector<DimBindings> others = multiples();
  return others.empty() ? hints_ : others.front();
}

DimBindings TrialSizes::small() const {
  if (given_) return *given_;
  const auto found = in_turn(small_sizes());
  return found ? *found : other();
}

DimBindings TrialSizes::other() const {
  if (given_) return *given_;
  for (const auto& candidates : other_sizes()) {
    if (const auto found = in_turn(candidates)) return *found;
  }
  return fallback();
}

DimBindings TrialSizes::traced() const { return shortened(INT64_MAX); }

DimBindings TrialSizes::shortened(std::int64_t longest) const {
  if (given_) return *given_;
  const auto cut = [&](bool one_row, std::int64_t limit) {
    return assign([&](std::size_t i, const Symbol& symbol) {
      return std::min<std::int64_t>(symbol.hint, one_row && is_batch(i) ? 1 : limit);
    });
  };
  for (const std::int64_t limit : {longest, INT64_MAX}) {
    for (const bool one_row : {true, false}) {
      if (const auto found = cut(one_row, limit)) return *found;
    }
  }
  return hints_;
}

DimBindings TrialSizes::few() const {
  if (given_) return *given_;
  for (const bool keeps_ones : {false, true}) {
    const auto found = assign([&](std::size_t i, const Symbol& symbol) {
      return is_batch(i) || (keeps_ones && symbol.hint == 1) ? std::int64_t{1} : std::int64_t{2};
    });
    if (found) return *found;
  }
  return small();
}

std::vector<DimBindings> TrialSizes::with(std::int64_t size, bool all) const {
  std::vector<DimBindings> found;
  if (given_) return found;
  const auto add = [&](const auto& is_long) {
    // What is not long is small, or else as traced.
    for (const bool traced : {false, true}) {
      const auto sizes = assign([&](std::size_t i, const Symbol& symbol) {
        if (is_long(i)) return size;
        if (is_batch(i) || symbol.hint == 1) return std::int64_t{1};
        return traced ? symbol.hint : std::int64_t{2};
      });
      if (!sizes) continue;
      if (std::find(found.begin(), found.end(), *sizes) == found.end()) found.push_back(*sizes);
      return;
    }
  };
  if (all) add([&](std::size_t i) { return !is_batch(i) && free_[i].hint != 1; });
  for (std::size_t one = 0; one < free_.size(); ++one) {
    if (!is_batch(one)) add([&](std::size_t i) { return i == one; });
  }
  return found;
}

RegionSizes TrialSizes::narrowed(DimBindings sizes, const RegionSizes& widths) const {
  RegionSizes result{std::move(sizes), widths.divisor, widths.replaced};
  for (const auto& [id, dim] : bound_) {
    if (dim.is_constant()) result.symbols[id] = result.at(dim);
  }
  return result;
}

std::vector<std::vector<std::int64_t>> TrialSizes::shapes(const DimBindings& sizes) const {
  std::vector<std::vector<std::int64_t>> result;
  for (const ValueId id : graph_.inputs()) {
    auto& shape = result.emplace_back();
    for (const Dim& dim : graph_.value(id).spec.shape) shape.push_back(dim.evaluate(sizes));
  }
  return result;
}

std::string TrialSizes::to_string(const DimBindings& sizes) const {
  std::string text;
  for (const auto& shape : shapes(sizes)) {
    text += fmt::format("{}({})", text.empty() ? "" : ", ", fmt::join(shape, ", "));
  }
  return text;
}

}  // namespace tenon::detail
