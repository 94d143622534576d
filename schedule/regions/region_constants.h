// The numbers that a region's nodes compare with, add, clamp by, or cut at: inputs and sizes just below,
// at and above them show what a rewrite does there.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/regions/region_graph.h"

namespace tenon::detail {

struct RegionConstants {
  std::vector<double> numbers;      // that meet values
  std::vector<double> factors;      // that scale them
  std::vector<std::int64_t> sizes;  // that meet a size or a position, each at least 2
};
RegionConstants constants_of(const Region& region, const Graph& before, const Graph& after);

}  // namespace tenon::detail
