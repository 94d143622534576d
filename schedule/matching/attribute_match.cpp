#include "schedule/matching/attribute_match.h"

#include <algorithm>

namespace tenon::detail {
namespace {

using SymbolVisitor = std::function<std::optional<Dim>(const DimSymbol&)>;

void visit_symbols(const AttrValue& value, const SymbolVisitor& visit) {
  if (const auto* dim = std::get_if<Dim>(&value)) dim->substitute(visit);
  if (const auto* scalar = std::get_if<Scalar>(&value)) scalar->substitute(visit);
  if (const auto* shape = std::get_if<Shape>(&value)) {
    for (const Dim& dim : *shape) dim.substitute(visit);
  }
}

/// A wildcard, also one that came as a double or int64 where a Scalar was needed.
WildcardInfo wildcard_of(const AttrValue& value) {
  const auto* scalar = std::get_if<Scalar>(&value);
  if (!scalar || !scalar->is_constant()) return wildcard_info(value);
  const Number number = scalar->number();
  return number.is_integer() ? wildcard_info(number.integer()) : wildcard_info(number.to_double());
}

class Comparison {
 public:
  Comparison(const Graph& graph, const Node& node, const PatternBindings& bindings)
      : graph_(graph), node_(node), bindings_(bindings) {}

  bool same(const AttrValue& wanted, const AttrValue& given, FieldKind kind) const {
    if (const WildcardInfo wildcard = wildcard_of(wanted); wildcard.is_wildcard) {
      return wildcard.capture < 0 || bindings_.capture(wildcard.capture, given);
    }
    if (wanted.index() != given.index()) return false;
    if (kind == FieldKind::axis || kind == FieldKind::axes || kind == FieldKind::axis_set) {
      return same_axes(wanted, given, kind);
    }
    if (const auto* shape = std::get_if<Shape>(&wanted)) {
      return same_shape(*shape, std::get<Shape>(given));
    }
    if (const auto* dim = std::get_if<Dim>(&wanted)) return same_size(*dim, std::get<Dim>(given));
    if (const auto* scalar = std::get_if<Scalar>(&wanted)) {
      bool complete = true;
      const Scalar known = scalar->substitute(lookup(complete));
      return complete && known.same_as(std::get<Scalar>(given));
    }
    return equal(wanted, given);
  }

 private:
  /// Axes of the pattern are normalized by the ranks of the node that they are compared with.
  bool same_axes(const AttrValue& wanted, const AttrValue& given, FieldKind kind) const {
    int rank = graph_.value(node_.outputs.at(0)).spec.shape.rank();
    for (ValueId input : node_.inputs) {
      if (input != kNone) rank = std::max(rank, graph_.value(input).spec.shape.rank());
    }
    const auto normal = [&](std::int64_t axis) { return axis < 0 ? axis + rank : axis; };
    if (const auto* axis = std::get_if<std::int64_t>(&wanted)) {
      return normal(*axis) == normal(std::get<std::int64_t>(given));
    }
    std::vector<std::int64_t> axes = std::get<std::vector<std::int64_t>>(wanted);
    std::vector<std::int64_t> other = std::get<std::vector<std::int64_t>>(given);
    std::transform(axes.begin(), axes.end(), axes.begin(), normal);
    std::transform(other.begin(), other.end(), other.begin(), normal);
    if (kind == FieldKind::axis_set) {
      std::sort(axes.begin(), axes.end());
      std::sort(other.begin(), other.end());
    }
    return axes == other;
  }

  bool same_shape(const Shape& wanted, const Shape& given) const {
    if (wanted.rank() != given.rank()) return false;
    for (int axis = 0; axis < wanted.rank(); ++axis) {
      const Dim& size = wanted[axis];
      if (size.is_wildcard()) {
        if (size.capture() >= 0 && !bindings_.capture(size.capture(), given[axis])) return false;
      } else if (!size.same_as(Dim(-1)) && !same_size(size, given[axis])) {
        return false;
      }
    }
    return true;
  }

  bool same_size(const Dim& wanted, const Dim& given) const {
    bool complete = true;
    const Dim known = wanted.substitute(lookup(complete));
    return complete && known.same_as(given);
  }

  /// The size that a symbol of the pattern stands for; `complete` tells whether all stood for one.
  SymbolVisitor lookup(bool& complete) const {
    return [this, &complete](const DimSymbol& symbol) {
      const auto size = size_of(symbol);
      complete &= size.has_value();
      return size;
    };
  }

  std::optional<Dim> size_of(const DimSymbol& symbol) const {
    if (symbol.kind != DimSymbol::Kind::pattern) return std::nullopt;
    const ValueId value = bindings_.values[static_cast<std::size_t>(symbol.pattern_value)];
    if (value == kNone) return std::nullopt;
    const Shape& shape = graph_.value(value).spec.shape;
    const int axis = symbol.pattern_axis;
    if (axis >= shape.rank() || axis < -shape.rank()) return std::nullopt;
    return shape[axis];
  }

  const Graph& graph_;
  const Node& node_;
  const PatternBindings& bindings_;
};

}  // namespace

std::vector<PatternField> pattern_fields(const Attrs& attrs) {
  std::vector<PatternField> fields;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    PatternField field{i, attrs.value(i), attrs.kind(i)};
    const WildcardInfo wildcard = wildcard_of(field.wanted);
    const bool captured = wildcard.is_wildcard && wildcard.capture >= 0;
    const bool compared = field.kind != FieldKind::site && field.kind != FieldKind::device;
    if (!captured && (wildcard.is_wildcard || !compared)) continue;
    visit_symbols(field.wanted, [&](const DimSymbol& symbol) -> std::optional<Dim> {
      if (symbol.kind == DimSymbol::Kind::pattern) {
        field.sized_values.push_back(static_cast<int>(symbol.pattern_value));
      }
      return std::nullopt;
    });
    fields.push_back(std::move(field));
  }
  return fields;
}

bool fits(const PatternField& field, const Graph& graph, const Node& node,
          const PatternBindings& bindings) {
  return Comparison(graph, node, bindings)
      .same(field.wanted, node.attrs.value(field.index), field.kind);
}

}  // namespace tenon::detail
