#include "schedule/verification/region_check.h"

#include <algorithm>
#include <map>
#include <set>

#include "schedule/facts/hidden_rows.h"
#include "schedule/verification/trial_comparison.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// Trials at constants at most, and of special numbers.
constexpr int kMostAimed = 12;
constexpr double kRepeatedWork = 1e5;
constexpr int kMostRepeats = 4;
/// A constant beyond this is one size, not four.
constexpr std::int64_t kLongAxis = 300;
constexpr std::int64_t kLongRow = 1030;
/// Less than this is done before other threads wake up.
constexpr double kFewFlops = 2e7;
/// Where the Graph does not tell what an index may be: the largest of these that the model takes.
constexpr std::int64_t kIndexBounds[] = {7, 5, 3, 2, 1};

bool depends_on_mode(const Node& node) { return mode_of(*node.op, node.attrs).has_value(); }

/// For its lifetime kernels of this thread run on so many threads, which changes no result.
class ThreadsScope {
 public:
  explicit ThreadsScope(int threads) : outer_(num_threads()) { set_num_threads(threads); }
  ~ThreadsScope() { set_num_threads(outer_); }
  ThreadsScope(const ThreadsScope&) = delete;
  ThreadsScope& operator=(const ThreadsScope&) = delete;

 private:
  int outer_;
};

class RegionCheck {
 public:
  RegionCheck(const Region& region, const std::vector<InputFacts>& inputs,
              const CheckContext& context)
      : region_(region),
        inputs_(inputs),
        context_(context),
        constants_(constants_of(region, context.before, context.after)),
        drawn_(inputs, constants_, context.options.seed),
        sides_of_(region, inputs, context),
        comparison_(region, inputs, context) {
    const auto follows_mode = [](const Graph& graph, const std::vector<NodeId>& nodes) {
      return std::any_of(nodes.begin(), nodes.end(),
                         [&](NodeId id) { return depends_on_mode(graph.node(id)); });
    };
    const bool both = context.options.whole || follows_mode(context.before, region.before) ||
                      follows_mode(context.after, region.after);
    for (const bool training : {false, true}) {
      const bool wanted = training ? context.options.training : context.options.eval;
      if (both && wanted && context.held_mode.value_or(training) == training) {
        modes_.push_back(training);
      }
    }
    if (!both) modes_.push_back(context.held_mode.value_or(false));
    for (const ValuePair& output : region.outputs) {  // sums of long rows leave its range
      const DType dtype = context.before.value(output.before).spec.dtype;
      is_half_ |= is_floating(dtype) && size_of(dtype) == 2;
    }
  }

  RegionOutcome run(const std::optional<RecordedInputs>& recorded) {
    // The widest models cost as much as narrow ones, but for a trial at their own width.
    widths_ = sides_of_.find_widths();
    run_drawn();
    if (!outcome_.ok && widths_ != RegionSizes{}) {  // it may hold for the model's own only
      outcome_ = {};
      compared_.clear();
      was_run_.clear();
      sides_.reset();
      first_ = true;
      widths_ = {};
      run_drawn();
    }
    draw("traced sizes", InputValues::drawn, context_.sizes.traced(), true);
    if (is_half_)
      draw("traced sizes, far from zero", InputValues::offset, context_.sizes.traced(), true);
    if (widths_ != RegionSizes{}) {
      widths_ = {};
      const DimBindings few = context_.sizes.few();
      draw("full widths", InputValues::drawn, few, true);
      if (is_half_) draw("full widths, far from zero", InputValues::offset, few, true);
    }
    if (recorded) run_recorded(*recorded);
    note_uncompared();
    return std::move(outcome_);
  }

  RegionOutcome run_recorded_only(const RecordedInputs& recorded) {
    run_recorded(recorded);
    return std::move(outcome_);
  }

 private:
  void run_drawn() {
    const TrialSizes& sizes = context_.sizes;
    const DimBindings small = sizes.small();
    draw("drawn inputs", InputValues::drawn, small, true);
    // Small regions have room for few numbers at a time.
    for (int i = 0; i < repeats(); ++i) draw("special inputs", InputValues::special, small);
    draw("inputs of all magnitudes", InputValues::spread, small);
    for (int i = 0; i < kMostAimed && drawn_.aims_left() > 0; ++i) {
      draw("inputs at constants", InputValues::aimed, small, true);
    }
    draw("large numbers", InputValues::large, small, true);
    draw("inputs far from zero", InputValues::offset, small, true);
    draw("positive inputs", InputValues::positive, small);
    if (drawn_.has_masks() || has_masked_attention_) {
      draw("rows of one truth value", InputValues::masked, small);
    }
    draw("other sizes", InputValues::drawn, sizes.other());
    for (const DimBindings& multiple : sizes.multiples()) {
      draw("multiples of the traced sizes", InputValues::drawn, multiple);
    }
    for (const std::int64_t constant : constants_.sizes) {
      for (const std::int64_t beyond : {3, 1, 0, -1}) {
        // A long axis has the shorter ones in it, and is the only one.
        const bool is_long = constant > kLongAxis;
        if (is_long && beyond < 3) continue;
        for (const DimBindings& aimed : sizes.with(constant + beyond, !is_long)) {
          draw(fmt::format("sizes at {}", constant), InputValues::drawn, aimed);
        }
      }
    }
    // Sums of long rows leave the range of 16 bits.
    for (const DimBindings& longer : sizes.with(kLongRow, false)) {
      if (!is_heavy_at(longer)) {
        draw("long rows", is_half_ ? InputValues::offset : InputValues::drawn, longer, is_half_);
      }
    }
  }

  int repeats() const {
    const auto sides = sides_of_.make(context_.sizes.small(), widths_);
    const double work = sides ? sides->cost.flops + sides->cost.bytes : kRepeatedWork;
    return work < kRepeatedWork ? kMostRepeats : 1;
  }

  bool is_heavy_at(const DimBindings& symbols) const {
    const auto sides = sides_of_.make(symbols, widths_);
    return !sides || sides->is_heavy();
  }

  /// The last ones are kept: most trials are of the same sizes.
  Sides* sides_at(const DimBindings& symbols) {
    if (sides_ && sides_->traced_symbols == symbols && sides_->sizes.divisor == widths_.divisor &&
        sides_->sizes.replaced == widths_.replaced) {
      return sides_.get();
    }
    auto made = sides_of_.make(symbols, widths_);
    if (made == nullptr) return nullptr;
    sides_ = std::move(made);
    has_masked_attention_ |=
        count_masked_attention(sides_->before) + count_masked_attention(sides_->after) > 0;
    drawn_.set_graph(sides_->before);
    return sides_.get();
  }

  void draw(const std::string& name, InputValues values, const DimBindings& sizes,
            bool bound = false) {
    const bool again = values == InputValues::special || values == InputValues::aimed;
    const bool is_new = was_run_
                            .insert(fmt::format("{} {} {}", key(sizes), widths_ == RegionSizes{},
                                                static_cast<int>(values)))
                            .second;
    if (!is_new && !again) return;
    const bool first = first_;
    Sides* sides = sides_at(sizes);
    if (sides == nullptr) return;
    const bool heavy = sides->is_heavy() && !(first_ && sides->is_bearable());
    if (!sides->is_possible()) {
      outcome_.left_out.push_back(
          fmt::format("{}: {} at {}, which needs {:.2g} operations and {:.2g} bytes",
                      name_of(region_, context_.before), name, context_.sizes.to_string(sizes),
                      sides->cost.flops, sides->cost.bytes));
      return;
    }
    if (first && !choose_indices(*sides)) return;
    first_ = false;
    if (heavy && context_.gradients) {
      outcome_.left_out.push_back(fmt::format("{}: gradients of {} at {}",
                                              name_of(region_, context_.before), name,
                                              context_.sizes.to_string(sizes)));
    }
    const bool extreme = values == InputValues::spread || values == InputValues::large ||
                         values == InputValues::offset;
    Trial trial{
        name,    drawn_.make(values),           drawn_.cotangents(),          !heavy, bound, first,
        extreme, values == InputValues::masked, values == InputValues::aimed, heavy};
    if (values == InputValues::aimed) {  // as they are: rounded to the dtype they may miss
      Trial exact = trial;
      exact.bound = false;
      compare(*sides, std::move(exact));
    }
    compare(*sides, std::move(trial));
  }

  static std::string key(const DimBindings& sizes) {
    std::vector<std::pair<std::int64_t, std::int64_t>> ordered(sizes.begin(), sizes.end());
    std::sort(ordered.begin(), ordered.end());
    std::string text;
    for (const auto& [id, size] : ordered) text += fmt::format("{}={},", id, size);
    return text;
  }

  /// False where nothing can be selected from.
  bool choose_indices(const Sides& sides) {
    drawn_.make(InputValues::drawn);
    if (drawn_.misfit() && drawn_.misfit()->size == 0) {
      outcome_.errors.push_back(drawn_.misfit()->to_string());
      outcome_.ok = false;
      return false;
    }
    if (drawn_.indices_are_known()) return true;
    for (const std::int64_t bound : kIndexBounds) {
      drawn_.limit_indices(bound);
      try {
        comparison_.try_model(sides, drawn_.make(InputValues::drawn));
        return true;
      } catch (const ValueError&) {
        // An index outside of what it selects from: a smaller bound; at last the model refuses.
      }
    }
    return true;
  }

  void run_recorded(const RecordedInputs& recorded) {
    Sides* sides = sides_at(recorded.sizes);
    if (sides == nullptr || !sides->is_possible()) return;
    const bool heavy = sides->is_heavy();
    std::vector<Tensor> inputs;
    for (const Tensor& input : recorded.inputs) {
      const Tensor host = input.detach().cpu();
      inputs.push_back(is_floating(host.dtype()) ? host.to(DType::float64).contiguous()
                                                 : host.contiguous());
    }
    compare(*sides, {"recorded inputs", std::move(inputs), drawn_.cotangents(), !heavy, false,
                     false, false, false, false, heavy});
    outcome_.fails_on_recorded = recorded_failed_;
  }

  void compare(const Sides& sides, Trial trial) {
    const ThreadsScope threads(sides.cost.flops < kFewFlops ? 1 : num_threads());
    TrialSummary summary{trial.name, context_.sizes.shapes(sides.traced_symbols),
                         sides.sizes.divisor};
    if (trial.bound) comparison_.round_to_dtypes(sides, trial);
    for (const bool training : modes_) {
      try {
        take(comparison_.run(sides, trial, training), trial);
      } catch (const InternalError&) {
        throw;
      } catch (const Error& error) {
        if (const auto refusal = comparison_.refusal_of_model(sides, trial, training)) {
          outcome_.notes.push_back(
              fmt::format("{}: not compared on {} ({}), which the model itself refuses: {}",
                          name_of(region_, context_.before), trial.name,
                          training ? "training" : "eval", *refusal));
          continue;
        }
        outcome_.errors.push_back(fmt::format("on {} ({}): {}", trial.name,
                                              training ? "training" : "eval", error.what()));
        fail(trial);
      }
    }
    outcome_.trials.push_back(std::move(summary));
  }

  void fail(const Trial& trial) {
    outcome_.ok = false;
    if (trial.name == "recorded inputs") recorded_failed_ = true;
  }

  void take(const TrialResults& results, const Trial& trial) {
    for (std::size_t i = 0; i < results.comparisons.size(); ++i) {
      const Comparison& c = results.comparisons[i];
      if (!c.ok) fail(trial);
      bool& compared = compared_[results.results[i]];
      compared = compared || c.compared > 0 || c.is_empty;
      outcome_.results.push_back(c);
    }
    auto& notes = outcome_.notes;
    if (results.note.empty()) return;
    if (std::find(notes.begin(), notes.end(), results.note) == notes.end()) {
      notes.push_back(results.note);
    }
  }

  void note_uncompared() {
    for (const auto& [r, compared] : compared_) {
      if (compared) continue;
      outcome_.not_compared.push_back(context_.options.whole
                                          ? comparison_.names()[r].text
                                          : fmt::format("{} of {}", comparison_.names()[r].text,
                                                        name_of(region_, context_.before)));
    }
    if (compared_.empty()) {
      outcome_.not_compared.push_back(name_of(region_, context_.before) + ": no trial ran");
    }
  }

  const Region& region_;
  const std::vector<InputFacts>& inputs_;
  const CheckContext& context_;
  RegionConstants constants_;
  TrialInputs drawn_;
  RegionSides sides_of_;
  TrialComparison comparison_;
  std::vector<bool> modes_;
  std::unique_ptr<Sides> sides_;
  RegionSizes widths_;  // for which numbers stand in for fixed widths now
  std::set<std::string> was_run_;
  std::map<std::size_t, bool> compared_;  // by result: on some finite element
  bool has_masked_attention_ = false;
  bool is_half_ = false;  // a result is of 16 bits
  bool first_ = true;
  bool recorded_failed_ = false;
  RegionOutcome outcome_;
};

}  // namespace

RegionOutcome check_region(const Region& region, const std::vector<InputFacts>& inputs,
                           const CheckContext& context,
                           const std::optional<RecordedInputs>& recorded) {
  return RegionCheck(region, inputs, context).run(recorded);
}

RegionOutcome check_recorded(const Region& region, const std::vector<InputFacts>& inputs,
                             const CheckContext& context, const RecordedInputs& recorded) {
  return RegionCheck(region, inputs, context).run_recorded_only(recorded);
}

}  // namespace tenon::detail
