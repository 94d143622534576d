// What a Graph proves about its values, whatever it is given: between which numbers they are, and which
// integers are indices of what table. Inputs of a region are drawn by it.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "tensor/value_range.h"

namespace tenon::detail {

struct ValueFacts {
  ValueRange range;
  bool rows_sum_to_one = false;  // along the last axis
  /// Elements may be -infinity: it was filled in where a mask is.
  bool may_be_hidden = false;
  /// Rows may be NaN: they were computed of rows that are all hidden.
  bool may_be_nan = false;
  /// It depends on a parameter that requires a gradient, or on a floating input, by ops that have one.
  bool is_differentiable = false;
  /// For integers that select along an axis of this size, as they are or as views; a Dim of -1: none.
  Dim table_size = -1;
  /// For the key of a structure.
  std::string to_string() const;
};

/// By value id.
std::vector<ValueFacts> facts_of(const Graph& graph);

}  // namespace tenon::detail
