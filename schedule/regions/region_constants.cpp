#include "schedule/regions/region_constants.h"

#include <algorithm>
#include <cmath>

#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

constexpr std::size_t kMostNumbers = 12;
constexpr std::size_t kMostSizes = 6;
constexpr std::int64_t kLongest = 1 << 16;
/// Of a tensor that holds a number or two.
constexpr std::int64_t kFewElements = 4;

template <class T>
void add(std::vector<T>& list, T number) {
  if (std::find(list.begin(), list.end(), number) == list.end()) list.push_back(number);
}

bool has_symbol(const Dim& dim) { return !dim.is_constant(); }

/// Whether an integer of the node's attributes is measured along an axis whose size is a symbol.
bool meets_sizes(const Graph& graph, const Node& node) {
  const ValueId id =
      node.inputs.empty() || node.inputs[0] == kNone ? node.outputs[0] : node.inputs[0];
  const Shape& shape = graph.value(id).spec.shape;
  for (std::size_t i = 0; i < node.attrs.size(); ++i) {
    if (node.attrs.kind(i) != FieldKind::axis) continue;
    const auto axis = std::get<std::int64_t>(node.attrs.value(i));
    return axis < shape.rank() && has_symbol(shape[static_cast<int>(axis)]);
  }
  const int rank = shape.rank();
  return (rank > 0 && has_symbol(shape[-1])) || (rank > 1 && has_symbol(shape[-2]));
}

/// A number that is compared with, added, subtracted or clamped by moves with the values' own unit; one
/// that scales does not.
bool scales(const Node& node) {
  static const std::vector<const Op*>& scaling =
      *new std::vector<const Op*>{&get_op("mul"), &get_op("div"), &get_op("rdiv")};
  return std::find(scaling.begin(), scaling.end(), node.op) != scaling.end();
}

/// 0 for what is none.
std::int64_t as_size(double number) {
  const double size = std::abs(number);
  return std::rint(size) == size && size <= kLongest ? static_cast<std::int64_t>(size) : 0;
}

void collect(const Graph& graph, const Node& node, RegionConstants& found) {
  for (std::size_t i = 0; i < node.attrs.size(); ++i) {
    if (node.attrs.kind(i) != FieldKind::value) continue;
    const AttrValue value = node.attrs.value(i);
    std::int64_t size = 0;
    if (const auto* scalar = std::get_if<Scalar>(&value)) {
      if (!scalar->is_constant() || scalar->is_wildcard()) continue;
      const double number = scalar->value();
      if (!std::isfinite(number) || number == 0) continue;
      if (scales(node)) {
        add(found.factors, number);
        continue;
      }
      add(found.numbers, number);
      size = as_size(number);
    } else if (const auto* number = std::get_if<double>(&value)) {
      if (std::isfinite(*number) && *number != 0) add(found.numbers, *number);
    } else if (const auto* integer = std::get_if<std::int64_t>(&value)) {
      if (*integer != 0) add(found.numbers, static_cast<double>(*integer));
      if (meets_sizes(graph, node)) size = std::abs(*integer);
    } else if (const auto* dim = std::get_if<Dim>(&value)) {
      if (dim->is_constant() && meets_sizes(graph, node)) size = hint_of(*dim);
    }
    if (size >= 2 && size <= kLongest) add(found.sizes, size);
  }
}

}  // namespace

RegionConstants constants_of(const Region& region, const Graph& before, const Graph& after) {
  RegionConstants found;
  for (const NodeId id : region.before) collect(before, before.node(id), found);
  for (const NodeId id : region.after) collect(after, after.node(id), found);
  for (const RegionInput& input : region.inputs) {
    const Value& value =
        input.before != kNone ? before.value(input.before) : after.value(input.after);
    if (value.kind != ValueKind::constant || value.tensor.layout().numel() > kFewElements) continue;
    for (const double number : value.tensor.to_doubles()) {
      if (!std::isfinite(number) || number == 0) continue;
      add(found.numbers, number);
      if (as_size(number) >= 2) add(found.sizes, as_size(number));
    }
  }
  if (found.numbers.size() > kMostNumbers) found.numbers.resize(kMostNumbers);
  if (found.factors.size() > kMostNumbers) found.factors.resize(kMostNumbers);
  if (found.sizes.size() > kMostSizes) found.sizes.resize(kMostSizes);
  return found;
}

}  // namespace tenon::detail
