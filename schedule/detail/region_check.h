// RegionCheck: all trials of one region.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "schedule/detail/correspondence.h"
#include "schedule/detail/trial.h"
#include "schedule/detail/trial_sizes.h"
#include "schedule/verification.h"

namespace tenon::detail {

/// What trials of one verification share.
struct CheckContext {
  const Graph& before;
  const Graph& after;
  const std::vector<ValueFacts>& facts_before;
  const std::vector<ValueFacts>& facts_after;
  const TrialSizes& sizes;
  const VerifyOptions& options;
  std::optional<bool> held_mode;  // the one mode, training or not, that the Graphs hold for
  bool gradients = true;  // false: the Graphs are joint ones, gradients are among their values
};

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

/// Everything from outside that a region's inputs are known by.
std::vector<InputFacts> input_facts(const Region& region, const CheckContext& context);
/// "self_attn.q_proj and 2 more": what the region makes.
std::string name_of(const Region& region, const Graph& before);

RegionOutcome check_region(const Region& region, const std::vector<InputFacts>& inputs,
                           const CheckContext& context,
                           const std::optional<RecordedInputs>& recorded);

/// The trial on recorded values alone, for another region of a structure that was checked.
RegionOutcome check_recorded(const Region& region, const std::vector<InputFacts>& inputs,
                             const CheckContext& context, const RecordedInputs& recorded);

/// Floating-point operations of one forward run of both sides, at small sizes.
double cost_of_region(const Region& region, const CheckContext& context);

}  // namespace tenon::detail
