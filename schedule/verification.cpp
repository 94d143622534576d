#include "schedule/verification.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "graph/program.h"
#include "schedule/detail/hidden_rows.h"
#include "schedule/detail/state.h"
#include "schedule/detail/trial.h"
#include "schedule/joint_graph.h"
#include "tensor/detail/check.h"
#include "tensor/random.h"

namespace tenon {
namespace {

using detail::InputValues;
using detail::StateChange;
using detail::Trial;

/// Roundings by which two correct float computations of one output may differ in the last place.
constexpr double kFloorRoundings = 4;
/// The same for a gradient, which sums over many rows.
constexpr double kGradientFloorRoundings = 16;

/// How far two float64 computations of a whole model may be apart.
struct Float64Bound {
  double relative;        // to the result's largest value
  double noise;           // to the largest of all outputs, or of all gradients
  bool gradients = true;  // false: any finite gradient is as good as another
};
constexpr Float64Bound kFloat64 = {1e-10, 1e-13};
/// Large numbers lose digits where they cancel.
constexpr Float64Bound kFloat64Special = {1e-6, 1e-9};
/// Here what matters is what overflows, not digits that cancel; gradients through saturated
/// probabilities need only be finite where the model's are.
constexpr Float64Bound kFloat64Large = {1e-3, 1e-6, false};
/// Roundings of a computation, in units of those by which detail::TrialMaker::nudged moves its inputs.
constexpr double kConditioning = 64;
/// The same for the bound kernels, in units of what rounding all numbers to their dtype would do.
constexpr double kConditioningBound = 8;

/// Numbers that the free size symbols take in turn.
using Sizes = std::vector<std::vector<std::int64_t>>;
const Sizes& kSizes = *new Sizes{{3, 7, 5, 11}};  // never destroyed: threads may outlive main
const Sizes& kOtherSizes = *new Sizes{{1, 9, 2, 6}, {2, 9, 4, 6}, {5, 3, 7, 2}};
/// Where the Graph does not tell what an index may be: the largest of these that the model takes.
constexpr std::int64_t kIndexBounds[] = {7, 5, 3, 2, 1};

std::vector<Tensor> run(const Graph& graph, const std::vector<Tensor>& inputs,
                        const LowerOptions& options, std::uint64_t seed) {
  std::vector<TensorSpec> specs;
  for (const Tensor& input : inputs) specs.push_back(input.spec());
  Generator generator(seed);
  return lower(graph, specs, options)->run(inputs, generator);
}

struct Difference {
  double largest = 0;  // NaN in one only counts as infinite
  double scale = 0;    // largest |reference|
};

Difference difference(const std::vector<double>& values, const std::vector<double>& reference) {
  Difference result;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double a = values[i];
    const double b = reference[i];
    if (std::isfinite(b)) result.scale = std::max(result.scale, std::abs(b));
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    const double apart = std::abs(a - b);
    result.largest = std::max(result.largest, std::isnan(apart) ? HUGE_VAL : apart);
  }
  return result;
}

/// The largest difference of integers or bools, exactly: as doubles, large ones that differ may be one.
double integer_difference(const Tensor& a, const Tensor& b) {
  const auto x = a.to(DType::int64).to_vector<std::int64_t>();
  const auto y = b.to(DType::int64).to_vector<std::int64_t>();
  std::uint64_t largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto [low, high] = std::minmax(x[i], y[i]);
    largest = std::max(largest, static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low));
  }
  return static_cast<double>(largest);
}

std::vector<Tensor> widened(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) {
    result.push_back(is_floating(tensor.dtype()) ? tensor.to(DType::float64) : tensor);
  }
  return result;
}

Device device_of(const Graph& graph) {
  for (ValueId id : graph.values()) {
    if (graph.value(id).tensor) return graph.value(id).tensor.device();
  }
  return graph.inputs().empty() ? kCpu : graph.value(graph.inputs()[0]).spec.device;
}

using Named = std::unordered_map<std::string, Tensor>;

/// The inputs of a gradient Graph: the trial's, and a cotangent for each output that takes one.
std::vector<Tensor> inputs_of(const GradientGraph& gradients, const Trial& trial) {
  std::vector<Tensor> inputs = trial.inputs;
  for (const std::size_t output : gradients.cotangents) inputs.push_back(trial.cotangents[output]);
  return inputs;
}

Named by_name(const GradientGraph& gradients, const std::vector<Tensor>& results) {
  Named named;
  for (std::size_t i = 0; i < results.size(); ++i) {
    named.emplace(gradients.outputs[i], results[i]);
  }
  return named;
}

/// Its meaning: float64 on the CPU.
Named run_float64(const GradientGraph& gradients, const Trial& trial, bool training,
                  std::uint64_t seed) {
  LowerOptions options{training, DType::float64, kCpu};
  if (!trial.states.empty()) options.states = &trial.states;
  return by_name(gradients,
                 run(gradients.graph, widened(inputs_of(gradients, trial)), options, seed));
}

/// By the kernels that will run.
Named run_bound(const GradientGraph& gradients, const Trial& trial, bool training,
                std::uint64_t seed) {
  std::vector<Tensor> inputs = inputs_of(gradients, trial);
  const Device device = device_of(gradients.graph);
  for (Tensor& input : inputs) input = input.to(device);
  return by_name(gradients, run(gradients.graph, inputs, {.training = training}, seed));
}

bool is_gradient(const std::string& name) { return name.starts_with("gradient"); }

/// Rounding noise in a result that is zero in truth comes from terms of this size.
double largest_of(const Named& results, bool gradients) {
  double largest = 0;
  for (const auto& [name, tensor] : results) {
    if (is_gradient(name) != gradients) continue;
    const auto values = tensor.to_doubles();
    largest = std::max(largest, difference(values, values).scale);
  }
  return largest;
}

bool outputs_are_finite(const Named& results) {
  return std::all_of(results.begin(), results.end(), [](const auto& result) {
    const auto values = result.second.to_doubles();
    return !result.first.starts_with("output") ||
           std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
  });
}

/// Behind an output that is not finite, gradients are finite or not as each formula has it.
void drop_non_finite(std::vector<double>& a, std::vector<double>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) a[i] = b[i] = 0;
  }
}

bool all_ok(const std::vector<Comparison>& results) {
  return std::all_of(results.begin(), results.end(), [](const Comparison& c) { return c.ok; });
}

/// The results of both Graphs in one trial and mode, compared name by name.
class Comparing {
 public:
  Comparing(const GradientGraph& before, const GradientGraph& after,
            const detail::TrialMaker& maker, std::uint64_t seed)
      : before_(before), after_(after), maker_(maker), seed_(seed) {}

  std::vector<Comparison> run(Trial trial, bool training, const Float64Bound& allowed, bool bound) {
    plain_ = run_float64(before_, trial, training, seed_);
    finite_ = outputs_are_finite(plain_);
    if (!finite_) {
      silence_non_finite(trial);
      plain_ = run_float64(before_, trial, training, seed_);
    }
    scheduled_ = run_float64(after_, trial, training, seed_);
    plain_bound_ = bound ? run_bound(before_, trial, training, seed_) : Named();
    scheduled_bound_ = bound ? run_bound(after_, trial, training, seed_) : Named();
    output_terms_ = largest_of(plain_, false);
    for (const Tensor& input : trial.inputs) {
      if (!is_floating(input.dtype())) continue;
      const auto values = input.to_doubles();
      output_terms_ = std::max(output_terms_, difference(values, values).scale);
    }
    gradient_terms_ = largest_of(plain_, true);
    std::vector<std::string> names = before_.outputs;
    for (const std::string& name : after_.outputs) {
      if (!plain_.contains(name)) names.push_back(name);
    }
    std::vector<Comparison> results;
    for (const std::string& name : names) {
      Comparison c;
      c.trial = trial.name;
      c.name = name;
      c.training = training;
      c.bound = bound;
      compare(c, allowed);
      if (!c.ok) {
        // Perhaps the model itself does not determine this result any better.
        if (nudged_.empty()) {
          nudged_ = run_float64(before_, maker_.nudged(trial), training, seed_);
        }
        compare(c, allowed);
      }
      results.push_back(std::move(c));
    }
    return results;
  }

 private:
  /// Nothing is asked of gradients through output elements that are not finite.
  void silence_non_finite(Trial& trial) const {
    for (const std::size_t output : before_.cotangents) {
      Tensor& cotangent = trial.cotangents[output];
      const auto values = plain_.at(fmt::format("output {}", output)).to_doubles();
      std::vector<double> weights = cotangent.to_doubles();
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (!std::isfinite(values[i])) weights[i] = 0;
      }
      cotangent =
          tensor(std::span<const double>(weights), cotangent.shape(), {cotangent.dtype(), kCpu});
    }
  }

  /// A gradient that is undefined on one side counts as zero; anything else must be on both.
  static std::vector<double> values_of(const Named& results, const std::string& name,
                                       std::size_t count) {
    const auto found = results.find(name);
    return found == results.end() ? std::vector<double>(count, 0.0) : found->second.to_doubles();
  }

  void compare(Comparison& c, const Float64Bound& allowed) const {
    const bool both = plain_.contains(c.name) && scheduled_.contains(c.name);
    const Tensor& known = (plain_.contains(c.name) ? plain_ : scheduled_).at(c.name);
    if (both ? !known.shape().same_as(scheduled_.at(c.name).shape()) : !is_gradient(c.name)) {
      c.float64_difference = HUGE_VAL;
      return;
    }
    const auto count = static_cast<std::size_t>(known.layout().numel());
    auto exact = values_of(plain_, c.name, count);
    auto meant = values_of(scheduled_, c.name, count);
    if (!finite_ && is_gradient(c.name)) drop_non_finite(exact, meant);
    const Difference meaning = difference(meant, exact);
    const double terms = is_gradient(c.name) ? gradient_terms_ : output_terms_;
    c.float64_difference = meaning.largest;
    c.float64_allowed = allowed.relative * meaning.scale + allowed.noise * terms;
    if (both && !is_floating(known.dtype())) {
      c.float64_difference = integer_difference(plain_.at(c.name), scheduled_.at(c.name));
      c.float64_allowed = 0;
    }
    if (is_gradient(c.name) && !allowed.gradients) {
      c.float64_allowed = std::numeric_limits<double>::max();
    }
    const double moved = nudged_difference(c.name, exact);
    c.float64_allowed += kConditioning * moved;
    c.ok = c.float64_difference <= c.float64_allowed;
    if (c.bound) compare_bound(c, exact, std::max(meaning.scale, terms), moved);
  }

  /// How far the model's own result moves when its numbers do; 0 until that was asked for.
  double nudged_difference(const std::string& name, std::vector<double> exact) const {
    const auto found = nudged_.find(name);
    if (found == nudged_.end()) return 0;
    auto values = found->second.to_doubles();
    if (!finite_ && is_gradient(name)) drop_non_finite(values, exact);
    return difference(values, exact).largest;
  }

  void compare_bound(Comparison& c, std::vector<double> exact, double terms, double moved) const {
    auto unscheduled = values_of(plain_bound_, c.name, exact.size());
    auto fused = values_of(scheduled_bound_, c.name, exact.size());
    if (!finite_ && is_gradient(c.name)) {
      drop_non_finite(fused, exact);
      drop_non_finite(unscheduled, exact);
    }
    const auto known = (plain_bound_.contains(c.name) ? plain_bound_ : scheduled_bound_).at(c.name);
    const double floor = is_gradient(c.name) ? kGradientFloorRoundings : kFloorRoundings;
    c.max_abs_difference = difference(fused, unscheduled).largest;
    c.scheduled_error = difference(fused, exact).largest;
    c.unscheduled_error = difference(unscheduled, exact).largest;
    c.allowed_error = 2 * c.unscheduled_error + floor * unit_roundoff(known.dtype()) * terms +
                      kConditioningBound * moved * unit_roundoff(known.dtype()) / detail::kNudge;
    // A float64 model is its own reference, which is no better than the schedule's results.
    if (known.dtype() == DType::float64) {
      c.allowed_error = std::max(c.allowed_error, c.float64_allowed);
    }
    c.ok = c.ok && c.scheduled_error <= c.allowed_error;
  }

  const GradientGraph& before_;
  const GradientGraph& after_;
  const detail::TrialMaker& maker_;
  std::uint64_t seed_;
  Named plain_, scheduled_, plain_bound_, scheduled_bound_;
  Named nudged_;  // plain_ of the nudged trial; empty until it is asked for
  double output_terms_ = 0;
  double gradient_terms_ = 0;
  bool finite_ = true;
};

void compare_masks(const Graph& before, const Graph& after, const DimBindings& sizes,
                   VerifyReport& report) {
  const std::vector<std::string> own = detail::masks_of(before, sizes);
  const std::vector<std::string> rewritten = detail::masks_of(after, sizes);
  std::set_difference(own.begin(), own.end(), rewritten.begin(), rewritten.end(),
                      std::back_inserter(report.masks_missing));
  std::set_difference(rewritten.begin(), rewritten.end(), own.begin(), own.end(),
                      std::back_inserter(report.masks_added));
}

/// What the model calls a state must be the model's, not a copy: training would change the copy.
void compare_state(const Graph& after, const ModuleTree& tree, VerifyReport& report) {
  std::unordered_map<std::string, const TensorImpl*> known;
  for (const ModuleTree::State& state : tree.states) {
    known.emplace(state.name, state.tensor.impl().get());
  }
  for (const ValueId id : after.values()) {
    const Value& value = after.value(id);
    if (!value.tensor) continue;
    const auto found = known.find(value.name);
    if (found == known.end() || found->second == value.tensor.impl().get()) continue;
    report.errors.push_back(
        fmt::format("{} holds a tensor that is not the model's", after.value_name(id)));
  }
}

/// Gradients of what the schedule added are its own affair.
void drop_added_parameters(GradientGraph& gradients, const Graph& after, const ModuleTree& tree) {
  std::unordered_set<std::string> own;
  for (const ModuleTree::State& state : tree.states) own.insert("gradient of " + state.name);
  std::unordered_set<std::string> added;
  for (const ValueId id : after.values()) {
    const Value& value = after.value(id);
    const std::string name = "gradient of " + value.name;
    if (value.kind == ValueKind::parameter && !own.contains(name)) added.insert(name);
  }
  std::vector<ValueId> outputs;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < gradients.outputs.size(); ++i) {
    if (added.contains(gradients.outputs[i])) continue;
    outputs.push_back(gradients.graph.outputs()[i]);
    names.push_back(gradients.outputs[i]);
  }
  gradients.graph.set_outputs(std::move(outputs));
  gradients.graph.eliminate_dead_code();
  gradients.outputs = std::move(names);
}

/// One call of verify().
class Verification {
 public:
  Verification(const Schedule& schedule, const VerifyOptions& options)
      : options_(options),
        tree_(detail::module_tree(schedule.model())),
        rewritten_tree_(detail::state_tree(schedule)),
        original_(detail::without_effects(schedule.original())),
        rewritten_(detail::without_effects(schedule.graph())),
        maker_(original_, tree_, options.seed) {}

  VerifyReport run() {
    compare_state(rewritten_, tree_, report_);
    if (original_.outputs().size() != rewritten_.outputs().size()) {
      report_.errors.push_back(fmt::format("the schedule has {} outputs; the model has {}",
                                           rewritten_.outputs().size(),
                                           original_.outputs().size()));
      return std::move(report_);
    }
    before_ = differentiate(original_, tree_);
    after_ = differentiate(rewritten_, rewritten_tree_);
    drop_added_parameters(after_, rewritten_, tree_);
    if (detail::turns_hidden_rows_to_zeros(original_, rewritten_)) {
      report_.notes.emplace_back(detail::kHiddenRowsNote);
      zeroed_ = differentiate(detail::with_zeros_for_hidden_rows(original_, rewritten_), tree_);
    }
    if (const auto held = held_mode()) {
      report_.notes.push_back(
          fmt::format("compared in {} mode only: code that asked training() holds for that mode",
                      *held ? "training" : "eval"));
    }
    choose_sizes(kSizes);
    if (selects_from_nothing()) return std::move(report_);
    if (!maker_.indices().all_known()) choose_index_bound();
    compare_masks(original_, rewritten_, maker_.sizes(), report_);
    run({"drawn inputs", InputValues::drawn, StateChange::none, kFloat64, true});
    run({"special inputs", InputValues::special, StateChange::none, kFloat64Special});
    if (maker_.has_masks() || detail::loses_masked_attention(original_, rewritten_)) {
      run({"rows of one truth value", InputValues::masked, StateChange::none, kFloat64});
    }
    run({"large numbers", InputValues::large, StateChange::scaled, kFloat64Large});
    choose_sizes(kOtherSizes);
    run({"other state", InputValues::drawn, StateChange::shifted, kFloat64});
    return std::move(report_);
  }

 private:
  struct TrialKind {
    const char* name;
    InputValues values;
    StateChange change;
    Float64Bound allowed;
    bool bound = false;
  };
  /// What the model itself throws.
  struct Refusal {
    std::string text;
    bool is_value = false;  // an index out of range, for one
  };

  void choose_sizes(const std::vector<std::vector<std::int64_t>>& candidates) {
    maker_.choose_sizes(options_.sizes, candidates);
    are_examples_ = false;
  }

  /// A model that refuses a trial's sizes takes the example's. Where it refuses those values as well
  /// there is nothing to compare.
  void run(const TrialKind& kind) {
    auto refusal = compare(kind);
    if (refusal && options_.sizes.empty() && !are_examples_) {
      are_examples_ = true;
      maker_.choose_sizes({}, {});
      refusal = compare(kind);
    }
    if (!refusal) return;
    const bool fails = kind.bound && !refusal->is_value;
    (fails ? report_.errors : report_.notes)
        .push_back(fmt::format("not compared on {}, which the model itself refuses: {}", kind.name,
                               refusal->text));
  }

  bool selects_from_nothing() {
    const auto& misfit = maker_.misfit();
    if (!misfit || misfit->size > 0) return false;
    report_.errors.push_back(misfit->to_string());
    return true;
  }

  void choose_index_bound() {
    for (const std::int64_t bound : kIndexBounds) {
      maker_.indices().limit(bound);
      try {
        run_float64(before_, maker_.make("", InputValues::drawn, StateChange::none),
                    held_mode().value_or(false), options_.seed);
        return;
      } catch (const ValueError&) {
        // An index outside of what it selects from: a smaller bound; at last the model refuses.
      }
    }
  }

  /// The one mode that both Graphs hold for; nothing: either. What runs in no other is compared in
  /// no other.
  std::optional<bool> held_mode() const {
    const auto model = before_.graph.facts().held_mode();
    return model ? model : after_.graph.facts().held_mode();
  }

  /// Nothing, or why the model cannot run.
  std::optional<Refusal> compare(const TrialKind& kind) {
    const Trial trial = maker_.make(kind.name, kind.values, kind.change);
    TrialSummary summary{trial.name, {}};
    for (const Tensor& input : trial.inputs) summary.sizes.push_back(input.shape().hints());
    for (const bool training : {false, true}) {
      if (!(training ? options_.training : options_.eval)) continue;
      if (held_mode().value_or(training) != training) continue;
      try {
        const auto compared_with = [&](const GradientGraph& model) {
          return Comparing(model, after_, maker_, options_.seed)
              .run(trial, training, kind.allowed, kind.bound);
        };
        std::vector<Comparison> results = compared_with(before_);
        if (zeroed_ && !all_ok(results)) {
          std::vector<Comparison> others = compared_with(*zeroed_);
          if (all_ok(others)) results = std::move(others);
        }
        std::move(results.begin(), results.end(), std::back_inserter(report_.results));
      } catch (const InternalError&) {
        throw;
      } catch (const Error& error) {
        if (auto refusal = refusal_of_model(trial, training)) return refusal;
        report_.errors.push_back(fmt::format("on {} ({}): {}", trial.name,
                                             training ? "training" : "eval", error.what()));
      }
    }
    report_.trials.push_back(std::move(summary));
    return std::nullopt;
  }

  std::optional<Refusal> refusal_of_model(const Trial& trial, bool training) const {
    try {
      run_float64(before_, trial, training, options_.seed);
      return std::nullopt;
    } catch (const ValueError& error) {
      return Refusal{error.what(), true};
    } catch (const Error& error) {
      return Refusal{error.what(), false};
    }
  }

  VerifyOptions options_;
  ModuleTree tree_, rewritten_tree_;
  Graph original_, rewritten_;
  detail::TrialMaker maker_;
  bool are_examples_ = false;  // the sizes
  GradientGraph before_, after_;
  std::optional<GradientGraph> zeroed_;  // before_ as if queries that see no key gave zeros
  VerifyReport report_;
};

std::string text_of(const Comparison& c) {
  std::string text = fmt::format("{} {} ({}{}): ", c.ok ? "ok  " : "FAIL", c.name,
                                 c.bound ? "" : c.trial + ", ", c.training ? "training" : "eval");
  if (c.bound) {
    text += fmt::format(
        "|scheduled - unscheduled| {:.3g}; error to float64 {:.3g}, allowed {:.3g} (unscheduled "
        "{:.3g}); ",
        c.max_abs_difference, c.scheduled_error, c.allowed_error, c.unscheduled_error);
  }
  return text + fmt::format("meaning in float64 {:.3g}, allowed {:.3g}\n", c.float64_difference,
                            c.float64_allowed);
}

std::string shapes_of(const TrialSummary& trial) {
  std::string shapes;
  for (const auto& size : trial.sizes) {
    shapes += fmt::format("{}({})", shapes.empty() ? "" : ", ", fmt::join(size, ", "));
  }
  return shapes;
}

}  // namespace

bool VerifyReport::ok() const {
  return masks_missing.empty() && masks_added.empty() && errors.empty() && all_ok(results);
}

double VerifyReport::max_abs_difference() const {
  double largest = 0;
  for (const Comparison& result : results) {
    largest = std::max(largest, result.max_abs_difference);
  }
  return largest;
}

std::string VerifyReport::to_string() const {
  std::string text;
  for (const Comparison& c : results) {
    if (c.bound || !c.ok) text += text_of(c);
  }
  for (const std::string& mask : masks_missing) {
    text += fmt::format("FAIL what the model draws is not drawn: {}\n", mask);
  }
  for (const std::string& mask : masks_added) {
    text += fmt::format("FAIL what the model does not draw is drawn: {}\n", mask);
  }
  for (const std::string& error : errors) text += fmt::format("FAIL {}\n", error);
  for (const std::string& note : notes) text += fmt::format("note: {}\n", note);
  for (const TrialSummary& trial : trials) {
    const auto in_trial = [&](const Comparison& c) { return c.trial == trial.name; };
    const auto compared = std::count_if(results.begin(), results.end(), in_trial);
    const auto equal = std::count_if(results.begin(), results.end(),
                                     [&](const Comparison& c) { return in_trial(c) && c.ok; });
    text += fmt::format("{}: {} of {} results agree on inputs {}\n", trial.name, equal, compared,
                        shapes_of(trial));
  }
  return text + fmt::format("verified in {:.1f} ms\n", milliseconds);
}

VerifyReport verify(const Schedule& schedule, const VerifyOptions& options) {
  const auto used = schedule.use("[verify] the schedule");
  const auto start = std::chrono::steady_clock::now();
  const GradModeGuard grad_mode(true);  // for models that ask for it
  VerifyReport report = Verification(schedule, options).run();
  report.milliseconds =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace tenon
