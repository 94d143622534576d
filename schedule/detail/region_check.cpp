#include "schedule/detail/region_check.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_set>

#include "graph/program.h"
#include "schedule/detail/comparison.h"
#include "schedule/detail/hidden_rows.h"
#include "schedule/detail/reference_run.h"
#include "schedule/detail/region_graph.h"
#include "schedule/joint_graph.h"
#include "tensor/detail/check.h"
#include "tensor/parallel.h"

namespace tenon::detail {
namespace {

/// What one trial may cost, both sides together: beyond the first gradients are left out, beyond the
/// second the trial.
constexpr double kGradientFlops = 3e7;
constexpr double kFirstFlops = 2e9;
constexpr double kFirstBytes = 5e8;
constexpr double kMostFlops = 2e10;
constexpr double kGradientBytes = 4e6;
constexpr double kMostBytes = 2e10;
constexpr double kLargestBytes = 3e8;
/// Trials at constants at most, and of special numbers.
constexpr int kMostAimed = 12;
constexpr double kRepeatedWork = 1e5;
constexpr int kMostRepeats = 4;
/// A constant beyond this is one size, not four.
constexpr std::int64_t kLongAxis = 300;
constexpr std::int64_t kLongRow = 1030;
/// Operations and bytes of a run that need not be made less.
constexpr double kLittleWork = 1e6;
constexpr double kCoarse = 4;
/// Less than this is done before other threads wake up.
constexpr double kFewFlops = 2e7;
/// Where the Graph does not tell what an index may be: the largest of these that the model takes.
constexpr std::int64_t kIndexBounds[] = {7, 5, 3, 2, 1};

bool depends_on_mode(const Node& node) { return mode_of(*node.op, node.attrs).has_value(); }

Device device_of(const Graph& graph) {
  for (const ValueId id : graph.values()) return graph.value(id).spec.device;
  return kCpu;
}

std::size_t columns_of(const Tensor& tensor) {
  const Extents& sizes = tensor.layout().sizes;
  return sizes.empty() ? 1 : std::max<std::size_t>(1, static_cast<std::size_t>(sizes.back()));
}

/// For each element kCoarse times the root mean square of its row, as far as that is finite.
std::vector<double> row_sizes(const Tensor& tensor) {
  std::vector<double> sizes = tensor.to_doubles();
  const std::size_t columns = columns_of(tensor);
  for (std::size_t row = 0; row < sizes.size(); row += columns) {
    const auto first = sizes.begin() + static_cast<std::ptrdiff_t>(row);
    const auto last = first + static_cast<std::ptrdiff_t>(std::min(columns, sizes.size() - row));
    double sum = 0;
    for (auto it = first; it != last; ++it) sum += std::isfinite(*it) ? *it * *it : 0;
    std::fill(first, last, kCoarse * std::sqrt(sum / static_cast<double>(last - first)));
  }
  return sizes;
}

bool all_finite(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

std::vector<double> doubles_or_zeros(const Tensor& tensor, std::size_t count) {
  return tensor ? tensor.to_doubles() : std::vector<double>(count, 0.0);
}

/// A result of a region: an output, or the gradient of an input.
struct ResultName {
  std::string text;
  bool is_gradient = false;
};

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

/// Both sides at one set of sizes.
struct Sides {
  RegionSizes sizes;
  DimBindings traced_symbols;  // before widths were divided
  Graph before;
  Graph after;
  std::optional<Graph> zeroed;  // `before`, if rows that see nothing gave zeros
  RunCost cost;
  double input_bytes = 0;
};

/// What a trial runs on.
struct Trial {
  std::string name;
  std::vector<Tensor> inputs;
  std::vector<Tensor> cotangents;
  bool gradients = true;
  bool bound = false;
  bool is_first = false;
  bool is_extreme = false;  // the model may overflow where the schedule does not
  bool hides_rows = false;
  bool is_aimed = false;
  bool is_coarse = false;   // by rows: what an element's terms are would take several more runs
};

class RegionCheck {
 public:
  RegionCheck(const Region& region, const std::vector<InputFacts>& inputs,
              const CheckContext& context)
      : region_(region),
        inputs_(inputs),
        context_(context),
        constants_(constants_of(region, context.before, context.after)),
        drawn_(inputs, constants_, context.options.seed) {
    for (const InputFacts& input : inputs) {
      differentiable_.push_back(context.gradients && input.facts.is_differentiable);
    }
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
    name_outputs();
  }

  RegionOutcome run(const std::optional<RecordedInputs>& recorded) {
    // The widest models cost as much as narrow ones, but for a trial at their own width.
    widths_ = find_widths();
    run_drawn();
    if (!outcome_.ok && widths_ != RegionSizes{}) {  // what holds for all widths holds here; this may hold for one
      outcome_ = {};
      compared_.clear();
      was_run_.clear();
      sides_.reset();
      first_ = true;
      widths_ = {};
      run_drawn();
    }
    draw("traced sizes", InputValues::drawn, context_.sizes.traced(), true);
    if (is_half_) draw("traced sizes, far from zero", InputValues::offset, context_.sizes.traced(), true);
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
    draw("inputs of all magnitudes", InputValues::spread, small, true);
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
    const auto sides = make_sides(context_.sizes.small(), widths_);
    const double work = sides ? sides->cost.flops + sides->cost.bytes : kRepeatedWork;
    return work < kRepeatedWork ? kMostRepeats : 1;
  }

  /// Smaller fixed widths, where both sides still fit together with them; as they are where little is
  /// to be gained.
  RegionSizes find_widths() const {
    const DimBindings small = context_.sizes.small();
    RegionSizes widths;
    const auto full = make_sides(small, widths);
    const auto traced = make_sides(context_.sizes.traced(), widths);
    const auto is_little = [](const std::unique_ptr<Sides>& sides) {
      return !sides || sides->cost.flops + sides->cost.bytes + sides->input_bytes < kLittleWork;
    };
    if (!full || (is_little(full) && is_little(traced))) return widths;
    const auto fits = [&](const RegionSizes& tried) {
      const auto sides = make_sides(small, tried);
      return sides && sides->sizes != full->sizes && keeps_shapes(*sides) && keeps_data(*sides, *full);
    };
    for (const std::int64_t divisor : {16, 8, 4, 2}) {
      const RegionSizes tried{{}, divisor};
      if (!fits(tried)) continue;
      widths = tried;
      break;
    }
    // Heads, and other small numbers that are no part of a larger width.
    std::set<std::int64_t> fixed;
    for (const InputFacts& input : inputs_) {
      for (const Dim& dim : input.spec.shape) {
        const std::int64_t width = dim.is_constant() ? hint_of(dim) : 0;
        if (width > 3 && width < 4 * widths.divisor) fixed.insert(width);
      }
    }
    for (const std::int64_t width : fixed) {
      RegionSizes tried = widths;
      tried.replaced[width] = 2;
      if (fits(tried)) widths = tried;
    }
    return widths;
  }

  bool keeps_shapes(const Sides& sides) const {
    for (std::size_t i = 0; i < region_.outputs.size(); ++i) {
      const Shape& before = sides.before.value(sides.before.outputs()[i]).spec.shape;
      if (!before.same_as(sides.after.value(sides.after.outputs()[i]).spec.shape)) return false;
    }
    return true;
  }

  /// What trials take as it is has its own shape.
  bool keeps_data(const Sides& sides, const Sides& full) const {
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const Shape& shape = sides.before.value(sides.before.inputs()[i]).spec.shape;
      const bool changed = !shape.same_as(full.before.value(full.before.inputs()[i]).spec.shape);
      if (changed && inputs_[i].keeps_its_data()) return false;
    }
    return true;
  }

  void name_outputs() {
    const auto& outputs = context_.before.outputs();
    for (const ValuePair& pair : region_.outputs) {
      std::string text = context_.before.value_name(pair.before);
      for (std::size_t i = outputs.size(); i-- > 0;) {
        if (outputs[i] == pair.before) text = fmt::format("output {}", i);
      }
      for (const StateWrite& write : context_.before.writes()) {
        if (write.value == pair.before) {
          text = "buffer " + context_.before.value(write.state).name;
        }
      }
      names_.push_back({std::move(text), false});
    }
    for (const InputFacts& input : inputs_) names_.push_back({"gradient of " + input.name, true});
  }

  /// Null where the sizes do not fit the region's nodes.
  std::unique_ptr<Sides> make_sides(const DimBindings& symbols,
                                    const RegionSizes& widths) const {
    auto made = std::make_unique<Sides>();
    made->traced_symbols = symbols;
    made->sizes = context_.sizes.narrowed(symbols, widths);
    try {
      const auto specs = input_specs(region_, context_.before, context_.after, made->sizes);
      const RegionSide before = side_before(region_, context_.before);
      made->before = region_graph(before, specs, made->sizes);
      made->after = region_graph(side_after(region_, context_.after), specs, made->sizes);
      const std::size_t masked = count_masked_attention(made->after);
      if (has_softmax(made->before) && masked > count_masked_attention(made->before)) {
        made->zeroed = region_graph(before, specs, made->sizes, &context_.after);
      }
    } catch (const InternalError&) {
      throw;
    } catch (const Error&) {
      return nullptr;
    }
    const RunCost before = cost_of(made->before);
    const RunCost after = cost_of(made->after);
    made->cost = {before.flops + after.flops, before.bytes + after.bytes,
                  std::max(before.largest_bytes, after.largest_bytes)};
    for (const ValueId id : made->before.inputs()) {
      made->input_bytes +=
          sizeof(double) * static_cast<double>(made->before.value(id).spec.shape.numel().value());
    }
    return made;
  }

  static bool is_heavy(const Sides& sides) {
    return sides.cost.flops > kGradientFlops || sides.cost.bytes + sides.input_bytes > kGradientBytes;
  }

  /// For one trial with gradients.
  static bool is_bearable(const Sides& sides) {
    return sides.cost.flops < kFirstFlops && sides.cost.bytes + sides.input_bytes < kFirstBytes;
  }

  bool is_heavy_at(const DimBindings& symbols) const {
    const auto sides = make_sides(symbols, widths_);
    return !sides || is_heavy(*sides);
  }

  /// The last ones are kept: most trials are of the same sizes.
  Sides* sides_at(const DimBindings& symbols) {
    if (sides_ && sides_->traced_symbols == symbols && sides_->sizes.divisor == widths_.divisor &&
        sides_->sizes.replaced == widths_.replaced) {
      return sides_.get();
    }
    auto made = make_sides(symbols, widths_);
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
    const bool is_new =
        was_run_.insert(fmt::format("{} {} {}", key(sizes), widths_ == RegionSizes{}, static_cast<int>(values)))
            .second;
    if (!is_new && !again) return;
    const bool first = first_;
    Sides* sides = sides_at(sizes);
    if (sides == nullptr) return;
    const bool heavy = is_heavy(*sides) && !(first_ && is_bearable(*sides));
    if (sides->cost.flops > kMostFlops || sides->cost.bytes > kMostBytes ||
        sides->cost.largest_bytes > kLargestBytes) {
      outcome_.left_out.push_back(fmt::format(
          "{}: {} at {}, which needs {:.2g} operations and {:.2g} bytes",
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
    Trial trial{name,  drawn_.make(values),           drawn_.cotangents(), !heavy, bound, first,
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
    const ReferenceRun model(sides.before, differentiable_);
    for (const std::int64_t bound : kIndexBounds) {
      drawn_.limit_indices(bound);
      try {
        model.run(drawn_.make(InputValues::drawn), drawn_.cotangents(), mode(false, false));
        return true;
      } catch (const ValueError&) {
        // An index outside of what it selects from: a smaller bound; at last the model refuses.
      }
    }
    return true;
  }

  void run_recorded(const RecordedInputs& recorded) {
    Sides* sides = sides_at(recorded.sizes);
    if (sides == nullptr || sides->cost.flops > kMostFlops || sides->cost.bytes > kMostBytes) return;
    const bool heavy = is_heavy(*sides);
    std::vector<Tensor> inputs;
    for (const Tensor& input : recorded.inputs) {
      const Tensor host = input.detach().cpu();
      inputs.push_back(is_floating(host.dtype()) ? host.to(DType::float64).contiguous()
                                                 : host.contiguous());
    }
    compare(*sides, {"recorded inputs", std::move(inputs), drawn_.cotangents(), !heavy, false, false,
                     false, false, false, heavy});
    outcome_.fails_on_recorded = recorded_failed_;
  }

  RunMode mode(bool training, bool gradients) const {
    return {training, gradients && context_.gradients,
            Generator(context_.options.seed).next_forward()};
  }

  void compare(const Sides& sides, Trial trial) {
    const ThreadsScope threads(sides.cost.flops < kFewFlops ? 1 : num_threads());
    TrialSummary summary{trial.name, context_.sizes.shapes(sides.traced_symbols),
                         sides.sizes.divisor};
    if (trial.bound) round_to_dtypes(sides, trial);
    for (const bool training : modes_) {
      try {
        compare_in(sides, sides.before, trial, training);
      } catch (const InternalError&) {
        throw;
      } catch (const Error& error) {
        if (const auto refusal = refusal_of_model(sides, trial, training)) {
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

  std::optional<std::string> refusal_of_model(const Sides& sides, const Trial& trial,
                                              bool training) const {
    try {
      ReferenceRun(sides.before, differentiable_)
          .run(trial.inputs, trial.cotangents, mode(training, trial.gradients));
      return std::nullopt;
    } catch (const InternalError&) {
      throw;
    } catch (const Error& error) {
      return error.what();
    }
  }

  /// The numbers that the bound kernels get are those of the model's dtype.
  void round_to_dtypes(const Sides& sides, Trial& trial) const {
    const auto rounded = [](const Tensor& tensor, DType dtype) {
      if (!tensor || !is_floating(dtype) || dtype == DType::float64) return tensor;
      return tensor.to(dtype).to(DType::float64);
    };
    for (std::size_t i = 0; i < trial.inputs.size(); ++i) {
      const bool is_drawn = inputs_[i].kind == ValueKind::parameter && !inputs_[i].is_fresh;
      if (is_drawn) continue;  // such that every dtype holds them
      trial.inputs[i] = rounded(trial.inputs[i], inputs_[i].spec.dtype);
    }
    for (std::size_t i = 0; i < trial.cotangents.size(); ++i) {
      trial.cotangents[i] =
          rounded(trial.cotangents[i], sides.before.value(sides.before.outputs()[i]).spec.dtype);
    }
  }

  static std::vector<Tensor> joined(const RunResults64& results) {
    std::vector<Tensor> all = results.outputs;
    all.insert(all.end(), results.gradients.begin(), results.gradients.end());
    return all;
  }

  void compare_in(const Sides& sides, const Graph& model_graph, const Trial& trial, bool training) {
    const RunMode how = mode(training, trial.gradients);
    const ReferenceRun model(model_graph, differentiable_);
    const auto exact = joined(model.run(trial.inputs, trial.cotangents, how));
    const auto meant = joined(
        ReferenceRun(sides.after, differentiable_).run(trial.inputs, trial.cotangents, how));
    std::vector<std::vector<double>> moved;
    const auto sensitivity = [&](std::size_t r) {
      return [&, r]() -> const std::vector<double>& {
        if (trial.is_coarse) moved.resize(exact.size());
        if (moved.empty()) moved = model.sensitivity(trial.inputs, trial.cotangents, how);
        if (trial.is_coarse && exact[r]) moved[r] = row_sizes(exact[r]);
        const Tensor& known = exact[r] ? exact[r] : meant[r];
        moved[r].resize(static_cast<std::size_t>(known.layout().numel()), 0.0);
        return moved[r];
      };
    };
    std::vector<Tensor> model_bound;
    std::vector<Tensor> scheduled_bound;
    if (trial.bound) {
      const std::vector<Tensor> given = bound_inputs(sides.before, trial);
      model_bound = run_bound(sides.before, given, trial, training);
      scheduled_bound = run_bound(sides.after, given, trial, training);
    }
    bool finite = true;
    for (std::size_t r = 0; r < region_.outputs.size(); ++r) {
      if (is_floating(exact[r].dtype())) finite = finite && all_finite(exact[r].to_doubles());
    }
    std::size_t nan_rows = 0;
    for (std::size_t r = 0; r < names_.size(); ++r) {
      if (!exact[r] && !meant[r]) continue;
      Comparison c;
      c.trial = trial.name;
      c.name = names_[r].text;
      c.region = context_.options.whole ? "" : name_of(region_, context_.before);
      c.training = training;
      c.bound = trial.bound && trial.is_first;
      const Tensor& known = exact[r] ? exact[r] : meant[r];
      const auto count = static_cast<std::size_t>(known.layout().numel());
      if (exact[r] && meant[r] && (!exact[r].shape().same_as(meant[r].shape()) || exact[r].dtype() != meant[r].dtype())) {
        c.float64_difference = HUGE_VAL;
        take(std::move(c), trial, r, count);
        continue;
      }
      // A row that sees nothing is no number in the model; attention may give zeros, nothing else.
      const Excused excused{names_[r].is_gradient && !finite, !trial.hides_rows || sides.zeroed,
                            trial.is_extreme, trial.is_extreme || trial.is_aimed};
      if (!is_floating(known.dtype())) {
        const Agreement agreement = compare_exactly(exact[r], meant[r]);
        c.float64_difference = agreement.difference;
        c.compared = agreement.compared;
        c.ok = agreement.ok;
        if (trial.bound) {
          const Agreement bound = compare_exactly(model_bound[r], scheduled_bound[r]);
          c.max_abs_difference = bound.largest_difference;
        }
        take(std::move(c), trial, r, count);
        continue;
      }
      const auto a = doubles_or_zeros(exact[r], count);
      const Agreement agreement =
          compare_meaning(a, doubles_or_zeros(meant[r], count), sensitivity(r),
                          excused);
      c.float64_difference = agreement.difference;
      c.float64_allowed = agreement.allowed;
      c.compared = agreement.compared;
      c.ok = agreement.ok;
      nan_rows += names_[r].is_gradient ? 0 : agreement.finite_for_nan;
      if (trial.bound && (model_bound[r] || scheduled_bound[r])) {
        const DType dtype = (model_bound[r] ? model_bound[r] : scheduled_bound[r]).dtype();
        const auto unscheduled = doubles_or_zeros(model_bound[r], count);
        const auto scheduled = doubles_or_zeros(scheduled_bound[r], count);
        const Agreement bound =
            compare_bound(a, unscheduled, scheduled, sensitivity(r), unit_roundoff(dtype),
                          columns_of(known), excused);
        c.scheduled_error = bound.difference;
        c.allowed_error = bound.allowed;
        for (std::size_t i = 0; i < count; ++i) {
          const double apart = std::abs(scheduled[i] - unscheduled[i]);
          if (std::isfinite(apart)) c.max_abs_difference = std::max(c.max_abs_difference, apart);
          const double off = std::abs(unscheduled[i] - a[i]);
          if (std::isfinite(off)) c.unscheduled_error = std::max(c.unscheduled_error, off);
        }
        c.ok = c.ok && bound.ok;
      }
      take(std::move(c), trial, r, count);
    }
    if (nan_rows == 0 || &model_graph != &sides.before) return;
    note_once(sides.zeroed ? kHiddenRowsNote
                           : "the schedule gives numbers in places where the model gives NaN");
    if (sides.zeroed) {
      Trial zeroed = trial;
      zeroed.bound = false;
      compare_in(sides, *sides.zeroed, zeroed, training);
    }
  }

  void take(Comparison c, const Trial& trial, std::size_t r, std::size_t count) {
    if (!c.ok) fail(trial);
    auto& compared = compared_[r];
    compared = compared || c.compared > 0 || count == 0;
    outcome_.results.push_back(std::move(c));
  }

  void note_once(const std::string& note) {
    auto& notes = outcome_.notes;
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
  }

  void note_uncompared() {
    for (const auto& [r, compared] : compared_) {
      if (compared) continue;
      outcome_.not_compared.push_back(context_.options.whole
                                          ? names_[r].text
                                          : fmt::format("{} of {}", names_[r].text,
                                                        name_of(region_, context_.before)));
    }
    if (compared_.empty()) {
      outcome_.not_compared.push_back(name_of(region_, context_.before) + ": no trial ran");
    }
  }

  /// Inputs, then the cotangents of floating outputs, in the dtypes of the model and on its device.
  std::vector<Tensor> bound_inputs(const Graph& graph, const Trial& trial) const {
    const Device device = device_of(graph);
    std::vector<Tensor> inputs;
    for (std::size_t i = 0; i < trial.inputs.size(); ++i) {
      inputs.push_back(trial.inputs[i].to(inputs_[i].spec.dtype).to(device));
    }
    for (std::size_t i = 0; i < trial.cotangents.size(); ++i) {
      const DType dtype = graph.value(graph.outputs()[i]).spec.dtype;
      inputs.push_back(trial.cotangents[i] ? trial.cotangents[i].to(dtype).to(device) : Tensor());
    }
    return inputs;
  }

  /// By the kernels that will run: outputs, then gradients by input.
  std::vector<Tensor> run_bound(const Graph& graph, const std::vector<Tensor>& given,
                                const Trial& trial, bool training) const {
    GradientGraph program;
    if (trial.gradients && context_.gradients) {
      program = differentiate(graph, {}, {}, &differentiable_);
    } else {
      program.graph = graph;
    }
    std::vector<Tensor> inputs(given.begin(),
                               given.begin() + static_cast<std::ptrdiff_t>(inputs_.size()));
    for (const std::size_t output : program.cotangents) {
      inputs.push_back(given[inputs_.size() + output]);
    }
    std::vector<TensorSpec> specs;
    for (const Tensor& input : inputs) specs.push_back(input.spec());
    Generator generator(context_.options.seed);
    const auto results = lower(program.graph, specs, {.training = training})->run(inputs, generator);
    std::vector<Tensor> ordered(names_.size());
    for (std::size_t i = 0; i < results.size(); ++i) {
      const std::size_t place = i < region_.outputs.size()
                                    ? i
                                    : region_.outputs.size() + program.gradient_inputs.at(i - region_.outputs.size());
      ordered[place] = results[i].cpu();
    }
    return ordered;
  }

  const Region& region_;
  const std::vector<InputFacts>& inputs_;
  const CheckContext& context_;
  RegionConstants constants_;
  TrialInputs drawn_;
  std::vector<bool> differentiable_;
  std::vector<bool> modes_;
  std::vector<ResultName> names_;
  std::unique_ptr<Sides> sides_;
  RegionSizes widths_;  // for which numbers stand in for fixed widths now
  std::set<std::string> was_run_;
  std::unordered_map<std::size_t, bool> compared_;
  bool has_masked_attention_ = false;
  bool is_half_ = false;  // a result is of 16 bits
  bool first_ = true;
  bool recorded_failed_ = false;
  RegionOutcome outcome_;
};

}  // namespace

std::vector<InputFacts> input_facts(const Region& region, const CheckContext& context) {
  const std::set<ValueId> masks_before = additive_masks(context.before, region.before);
  const std::set<ValueId> masks_after = additive_masks(context.after, region.after);
  std::set<const TensorImpl*> states;
  for (const ValueId id : context.before.values()) {
    if (const Tensor& state = context.before.value(id).tensor) states.insert(state.impl().get());
  }
  std::vector<InputFacts> inputs;
  for (const RegionInput& input : region.inputs) {
    const bool known = input.before != kNone;
    const Graph& graph = known ? context.before : context.after;
    const ValueId id = known ? input.before : input.after;
    const Value& value = graph.value(id);
    InputFacts facts;
    facts.kind = value.kind;
    facts.spec = value.spec;
    facts.own = value.tensor;
    facts.facts = (known ? context.facts_before : context.facts_after)[static_cast<std::size_t>(id)];
    facts.name = value.kind == ValueKind::input ? "input " + value.name
                 : value.tensor                 ? value.name
                                                : graph.value_name(id);
    facts.is_additive_mask = is_floating(value.spec.dtype) &&
                             (facts.facts.may_be_hidden || masks_before.contains(input.before) || masks_after.contains(input.after));
    // What the schedule brought makes no difference as it is; its gradients are its own affair.
    facts.is_fresh = facts.own && !states.contains(facts.own.impl().get());
    if (facts.is_fresh) facts.facts.is_differentiable = false;
    inputs.push_back(std::move(facts));
  }
  return inputs;
}

std::string name_of(const Region& region, const Graph& before) {
  if (region.outputs.empty()) return "nothing";
  const ValueId last = region.outputs.back().before;
  std::string name = before.value_name(last);
  if (name.starts_with('%')) name.erase(0, 1);
  if (region.outputs.size() > 1) name += fmt::format(" and {} more", region.outputs.size() - 1);
  return name;
}

RegionOutcome check_region(const Region& region, const std::vector<InputFacts>& inputs,
                           const CheckContext& context,
                           const std::optional<RecordedInputs>& recorded) {
  return RegionCheck(region, inputs, context).run(recorded);
}

RegionOutcome check_recorded(const Region& region, const std::vector<InputFacts>& inputs,
                             const CheckContext& context, const RecordedInputs& recorded) {
  return RegionCheck(region, inputs, context).run_recorded_only(recorded);
}

double cost_of_region(const Region& region, const CheckContext& context) {
  const RegionSizes sizes{context.sizes.small()};
  try {
    const auto specs = input_specs(region, context.before, context.after, sizes);
    return cost_of(region_graph(side_before(region, context.before), specs, sizes)).flops +
           cost_of(region_graph(side_after(region, context.after), specs, sizes)).flops;
  } catch (const InternalError&) {
    throw;
  } catch (const Error&) {
    return 0;
  }
}

}  // namespace tenon::detail
