// RegionSides: both sides of a region as Graphs of their own, at the sizes of a trial and with widths
// that may be smaller than the model's.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "schedule/regions/correspondence.h"
#include "schedule/regions/region_graph.h"
#include "schedule/trials/trial.h"
#include "schedule/trials/trial_sizes.h"
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

/// Everything from outside that a region's inputs are known by.
std::vector<InputFacts> input_facts(const Region& region, const CheckContext& context);
/// "self_attn.q_proj and 2 more": what the region makes.
std::string name_of(const Region& region, const Graph& before);
/// Floating-point operations of one forward run of both sides, at small sizes.
double cost_of_region(const Region& region, const CheckContext& context);

/// Both sides at one set of sizes.
struct Sides {
  RegionSizes sizes;
  DimBindings traced_symbols;  // before widths were divided
  Graph before;
  Graph after;
  std::optional<Graph> zeroed;  // `before`, if rows that see nothing gave zeros
  RunCost cost;
  double input_bytes = 0;
  /// Gradients, and what the terms of an element are, would take too long.
  bool is_heavy() const;
  /// For one trial with gradients.
  bool is_bearable() const;
  /// For a forward run.
  bool is_possible() const;
};

class RegionSides {
 public:
  /// All of them outlive it.
  RegionSides(const Region& region, const std::vector<InputFacts>& inputs,
              const CheckContext& context)
      : region_(region), inputs_(inputs), context_(context) {}

  /// Null where the sizes do not fit the region's nodes.
  std::unique_ptr<Sides> make(const DimBindings& symbols, const RegionSizes& widths) const;
  /// Smaller fixed widths, where both sides still fit together with them; as they are where little is
  /// to be gained.
  RegionSizes find_widths() const;

 private:
  bool keeps_shapes(const Sides& sides) const;
  bool keeps_data(const Sides& sides, const Sides& full) const;

  const Region& region_;
  const std::vector<InputFacts>& inputs_;
  const CheckContext& context_;
};

}  // namespace tenon::detail
