// Comparing an attribute of a pattern's call with that of a node: constants, axes counted from either
// end, sizes of bound values, wildcards and captures.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "graph/graph.h"

namespace tenon::detail {

/// One attribute that a node must fit.
struct PatternField {
  std::size_t index = 0;  // in the call's attributes
  AttrValue wanted;
  FieldKind kind = FieldKind::value;
  std::vector<int> sized_values = {};  // the pattern's values whose sizes it is made of
};

/// The fields of a pattern's call that are compared at all.
std::vector<PatternField> pattern_fields(const Attrs& attrs);

/// What a comparison may ask of the search: the values bound so far (kNone: not yet), by number in
/// the pattern, and whether a capture stands for this value, from now on if it stood for none.
struct PatternBindings {
  std::span<const ValueId> values;
  std::function<bool(int capture, const AttrValue& given)> capture;
};

bool fits(const PatternField& field, const Graph& graph, const Node& node,
          const PatternBindings& bindings);

}  // namespace tenon::detail
