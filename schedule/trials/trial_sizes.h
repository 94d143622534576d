// Sizes that verification runs at: numbers for the size symbols of a trace's inputs, as its guards
// allow them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "schedule/regions/region_graph.h"

namespace tenon::detail {

class TrialSizes {
 public:
  /// `graph` is what was traced; `given`, unless empty, are the only sizes of its inputs to use.
  TrialSizes(const Graph& graph, const std::vector<std::vector<std::int64_t>>& given);

  /// Small odd sizes, all different.
  DimBindings small() const;
  /// A batch of one, and other tails.
  DimBindings other() const;
  /// The example's own, cut to one row of the batch where the guards allow.
  DimBindings traced() const;
  /// The example's, with one row and no axis longer than `longest` where the guards allow.
  DimBindings shortened(std::int64_t longest) const;
  /// One row, and few of everything else.
  DimBindings few() const;
  /// Those with an axis of `size` that the guards allow: each axis but the batch in turn, the others
  /// small, and with `all` also all of them together. None where sizes were given.
  std::vector<DimBindings> with(std::int64_t size, bool all) const;
  /// Where guards forbid small sizes (n % 16 == 0), multiples of the example's that they allow.
  std::vector<DimBindings> multiples() const;

  /// These sizes with the widths of `widths`, also for sizes that the trace fixed.
  RegionSizes narrowed(DimBindings sizes, const RegionSizes& widths) const;

  /// Of the inputs at these sizes: "(3, 7, 8), (3, 7)".
  std::string to_string(const DimBindings& sizes) const;
  std::vector<std::vector<std::int64_t>> shapes(const DimBindings& sizes) const;

 private:
  struct Symbol {
    std::int64_t id = 0;
    std::int64_t hint = 0;
  };
  /// The free symbols get what `size_of(place, symbol)` says, those bound to others follow; nothing
  /// when a guard fails.
  template <class SizeOf>
  std::optional<DimBindings> assign(const SizeOf& size_of) const;
  std::optional<DimBindings> in_turn(const std::vector<std::int64_t>& candidates) const;
  DimBindings fallback() const;
  /// The first free axis of the inputs; one axis alone has no batch beside it.
  bool is_batch(std::size_t place) const { return place == 0 && has_batch_; }

  const Graph& graph_;
  std::vector<Symbol> free_;
  std::vector<std::pair<std::int64_t, Dim>> bound_;
  bool has_batch_ = false;
  DimBindings hints_;
  std::optional<DimBindings> given_;
};

}  // namespace tenon::detail
