#include "schedule/verification/region_sides.h"

#include <algorithm>
#include <set>

#include "schedule/facts/hidden_rows.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

// Operations and bytes, both sides together: beyond these gradients are left out, but for one trial
// that is bearable; beyond the last the trial is.
constexpr double kGradientFlops = 3e7;
constexpr double kGradientBytes = 4e6;
constexpr double kBearableFlops = 2e9;
constexpr double kBearableBytes = 5e8;
constexpr double kMostFlops = 2e10;
constexpr double kMostBytes = 2e10;
constexpr double kLargestBytes = 3e8;  // of one result
/// Operations and bytes of a run that need not be made less.
constexpr double kLittleWork = 1e6;

}  // namespace

bool Sides::is_heavy() const {
  return cost.flops > kGradientFlops || cost.bytes + input_bytes > kGradientBytes;
}

bool Sides::is_bearable() const {
  return cost.flops < kBearableFlops && cost.bytes + input_bytes < kBearableBytes;
}

bool Sides::is_possible() const {
  return cost.flops < kMostFlops && cost.bytes < kMostBytes && cost.largest_bytes < kLargestBytes;
}

std::unique_ptr<Sides> RegionSides::make(const DimBindings& symbols,
                                         const RegionSizes& widths) const {
  auto made = std::make_unique<Sides>();
  made->traced_symbols = symbols;
  made->sizes = context_.sizes.narrowed(symbols, widths);
  try {
    const auto specs = input_specs(region_, context_.before, context_.after, made->sizes);
    const RegionSide before = side_before(region_, context_.before);
    made->before = region_graph(before, specs, made->sizes);
    made->after = region_graph(side_after(region_, context_.after), specs, made->sizes);
    const std::size_t masked = count_masked_attention(made->after);
    if (has_softmax(made->before) && masked > count_masked_attention(made->before)) {
      made->zeroed = region_graph(before, specs, made->sizes, &context_.after);
    }
  } catch (const InternalError&) {
    throw;
  } catch (const Error&) {
    return nullptr;
  }
  const RunCost before = cost_of(made->before);
  const RunCost after = cost_of(made->after);
  made->cost = {before.flops + after.flops, before.bytes + after.bytes,
                std::max(before.largest_bytes, after.largest_bytes)};
  for (const ValueId id : made->before.inputs()) {
    made->input_bytes +=
        sizeof(double) * static_cast<double>(made->before.value(id).spec.shape.numel().value());
  }
  return made;
}

RegionSizes RegionSides::find_widths() const {
  const DimBindings small = context_.sizes.small();
  RegionSizes widths;
  const auto full = make(small, widths);
  const auto traced = make(context_.sizes.traced(), widths);
  const auto is_little = [](const std::unique_ptr<Sides>& sides) {
    return !sides || sides->cost.flops + sides->cost.bytes + sides->input_bytes < kLittleWork;
  };
  if (!full || (is_little(full) && is_little(traced))) return widths;
  const auto fits = [&](const RegionSizes& tried) {
    const auto sides = make(small, tried);
    return sides && sides->sizes != full->sizes && keeps_shapes(*sides) &&
           keeps_data(*sides, *full);
  };
  for (const std::int64_t divisor : {16, 8, 4, 2}) {
    const RegionSizes tried{{}, divisor};
    if (!fits(tried)) continue;
    widths = tried;
    break;
  }
  // Heads, and other small numbers that are no part of a larger width.
  std::set<std::int64_t> fixed;
  for (const InputFacts& input : inputs_) {
    for (const Dim& dim : input.spec.shape) {
      const std::int64_t width = dim.is_constant() ? hint_of(dim) : 0;
      if (width > 3 && width < 4 * widths.divisor) fixed.insert(width);
    }
  }
  for (const std::int64_t width : fixed) {
    RegionSizes tried = widths;
    tried.replaced[width] = 2;
    if (fits(tried)) widths = tried;
  }
  return widths;
}

bool RegionSides::keeps_shapes(const Sides& sides) const {
  for (std::size_t i = 0; i < region_.outputs.size(); ++i) {
    const Shape& before = sides.before.value(sides.before.outputs()[i]).spec.shape;
    if (!before.same_as(sides.after.value(sides.after.outputs()[i]).spec.shape)) return false;
  }
  return true;
}

/// What trials take as it is has its own shape.
bool RegionSides::keeps_data(const Sides& sides, const Sides& full) const {
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const Shape& shape = sides.before.value(sides.before.inputs()[i]).spec.shape;
    const bool changed = !shape.same_as(full.before.value(full.before.inputs()[i]).spec.shape);
    if (changed && inputs_[i].keeps_its_data()) return false;
  }
  return true;
}

std::vector<InputFacts> input_facts(const Region& region, const CheckContext& context) {
  const std::set<ValueId> masks_before = additive_masks(context.before, region.before);
  const std::set<ValueId> masks_after = additive_masks(context.after, region.after);
  std::set<const TensorImpl*> states;
  for (const ValueId id : context.before.values()) {
    if (const Tensor& state = context.before.value(id).tensor) states.insert(state.impl().get());
  }
  std::vector<InputFacts> inputs;
  for (const RegionInput& input : region.inputs) {
    const bool known = input.before != kNone;
    const Graph& graph = known ? context.before : context.after;
    const ValueId id = known ? input.before : input.after;
    const Value& value = graph.value(id);
    InputFacts facts;
    facts.kind = value.kind;
    facts.spec = value.spec;
    facts.own = value.tensor;
    facts.facts =
        (known ? context.facts_before : context.facts_after)[static_cast<std::size_t>(id)];
    facts.name = value.kind == ValueKind::input ? "input " + value.name
                 : value.tensor                 ? value.name
                                                : graph.value_name(id);
    facts.is_additive_mask = is_floating(value.spec.dtype) &&
                             (facts.facts.may_be_hidden || masks_before.contains(input.before) ||
                              masks_after.contains(input.after));
    // What the schedule brought makes no difference as it is; its gradients are its own affair.
    facts.is_fresh = facts.own && !states.contains(facts.own.impl().get());
    if (facts.is_fresh) facts.facts.is_differentiable = false;
    inputs.push_back(std::move(facts));
  }
  return inputs;
}

std::string name_of(const Region& region, const Graph& before) {
  if (region.outputs.empty()) return "nothing";
  const ValueId last = region.outputs.back().before;
  std::string name = before.value_name(last);
  if (name.starts_with('%')) name.erase(0, 1);
  if (region.outputs.size() > 1) name += fmt::format(" and {} more", region.outputs.size() - 1);
  return name;
}

double cost_of_region(const Region& region, const CheckContext& context) {
  const RegionSizes sizes{context.sizes.small()};
  try {
    const auto specs = input_specs(region, context.before, context.after, sizes);
    return cost_of(region_graph(side_before(region, context.before), specs, sizes)).flops +
           cost_of(region_graph(side_after(region, context.after), specs, sizes)).flops;
  } catch (const InternalError&) {
    throw;
  } catch (const Error&) {
    return 0;
  }
}

}  // namespace tenon::detail
