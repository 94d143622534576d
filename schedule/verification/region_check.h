// RegionCheck: all trials of one region.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "schedule/verification/region_sides.h"

namespace tenon::detail {

/// The values that a region's inputs had in a run of the model, and the sizes of that run.
struct RecordedInputs {
  std::vector<Tensor> inputs;
  DimBindings sizes;
};

struct RegionOutcome {
  std::vector<Comparison> results;
  std::vector<TrialSummary> trials;
  std::vector<std::string> errors;
  std::vector<std::string> notes;
  std::vector<std::string> not_compared;
  std::vector<std::string> left_out;
  bool ok = true;
  bool fails_on_recorded = false;
};

RegionOutcome check_region(const Region& region, const std::vector<InputFacts>& inputs,
                           const CheckContext& context,
                           const std::optional<RecordedInputs>& recorded);

/// The trial on recorded values alone, for another region of a structure that was checked.
RegionOutcome check_recorded(const Region& region, const std::vector<InputFacts>& inputs,
                             const CheckContext& context, const RecordedInputs& recorded);

}  // namespace tenon::detail
