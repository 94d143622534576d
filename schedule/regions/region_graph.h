// One side of a region as a Graph of its own, at sizes that are numbers: what the region's inputs are,
// parameters and buffers too, are its inputs, and the region's outputs are its outputs.
#pragma once

#include <map>
#include <vector>

#include "graph/graph.h"
#include "schedule/regions/correspondence.h"

namespace tenon::detail {

struct RegionSide {
  const Graph& graph;  // that the region is a part of
  const std::vector<NodeId>& nodes;
  const std::unordered_map<ValueId, int>& inputs;
  std::vector<ValueId> outputs;
};
RegionSide side_before(const Region& region, const Graph& before);
RegionSide side_after(const Region& region, const Graph& after);

/// Sizes of a region: numbers for the symbols, and smaller ones in place of fixed widths. A weight of
/// (3072, 768) is (192, 48) at a divisor of 16, a head of 64 is one of 4, and what is cut at 768 is cut
/// at 48: sums, multiples and heads of widths stay what they are. Widths below 4 divisors, or that
/// are no multiple, stay, but for those in `replaced`. Where that does not fit together, inference
/// says so.
struct RegionSizes {
  DimBindings symbols;
  std::int64_t divisor = 1;
  std::map<std::int64_t, std::int64_t> replaced = {};  // width -> number
  friend bool operator==(const RegionSizes&, const RegionSizes&) = default;
  std::int64_t at(const Dim& dim) const;
  std::int64_t width(std::int64_t fixed) const;
};

/// The region's inputs at `sizes`, as the original has them, else the rewritten Graph.
std::vector<TensorSpec> input_specs(const Region& region, const Graph& before, const Graph& after,
                                    const RegionSizes& sizes);

/// What inference throws where the sizes do not fit. Every softmax that `rewritten`, unless null, has
/// no more gives zeros for a row of -inf; see hidden_rows.h.
Graph region_graph(const RegionSide& side, const std::vector<TensorSpec>& inputs,
                   const RegionSizes& sizes, const Graph* rewritten = nullptr);

/// What one run of the Graph costs, from the sizes of its values.
struct RunCost {
  double flops = 0;
  double bytes = 0;          // of all results, at 8 bytes a number
  double largest_bytes = 0;  // of one result
};
RunCost cost_of(const Graph& graph);

}  // namespace tenon::detail
