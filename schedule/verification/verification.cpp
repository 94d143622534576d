#include "schedule/verification.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <map>
#include <optional>
#include <ostream>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "schedule/facts/recorded_values.h"
#include "schedule/rewriting/state.h"
#include "schedule/verification/region_check.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

using detail::InputFacts;
using detail::Region;
using detail::RegionOutcome;

/// Forward operations, at small sizes, up to which a region that fails is seen from further back.
constexpr double kWidestFlops = 2e9;
/// Positions of the run that values are recorded of.
constexpr std::int64_t kRecordedPositions = 32;
/// Parameters that the recorded run may read.
constexpr double kRecordedBytes = 1e9;
constexpr double kTellEvery = 1000;  // ms
/// Structures that fail until the others are not looked at.
constexpr std::size_t kMostFailures = 3;

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

/// Of a step, where backward and recomputation draw a mask again.
std::vector<std::string> sites_of(const Graph& graph) {
  std::set<std::string> sites;
  for (const NodeId id : graph.order()) {
    const auto mask = mask_of(graph.node(id));
    if (mask) sites.insert(fmt::format("site {} p {}", mask->site, mask->probability));
  }
  return {sites.begin(), sites.end()};
}

void compare_masks(const std::vector<std::string>& own, const std::vector<std::string>& rewritten,
                   VerifyReport& report) {
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

/// What regions cannot tell: as many outputs, and the same states written.
void compare_results(const Graph& before, const Graph& after, VerifyReport& report) {
  if (before.outputs().size() != after.outputs().size()) {
    report.errors.push_back(fmt::format("there are {} outputs; needed {}", after.outputs().size(),
                                        before.outputs().size()));
  }
  const auto compare = [&](const Graph& one, const Graph& other, const char* text) {
    std::unordered_set<const TensorImpl*> written;
    for (const StateWrite& write : other.writes()) {
      written.insert(other.value(write.state).tensor.impl().get());
    }
    for (const StateWrite& write : one.writes()) {
      const Value& state = one.value(write.state);
      if (written.contains(state.tensor.impl().get())) continue;
      report.errors.push_back(fmt::format("{} is {}", one.value_name(write.state), text));
    }
  };
  compare(before, after, "written no more");
  compare(after, before, "written, which it was not before");
}

/// One comparison of two Graphs without effects.
class Verification {
 public:
  Verification(const Graph& before, const Graph& after, const std::vector<Tensor>& examples,
               const VerifyOptions& options, bool gradients)
      : before_(before),
        after_(after),
        examples_(examples),
        options_(options),
        facts_before_(detail::facts_of(before)),
        facts_after_(detail::facts_of(after)),
        sizes_(before, options.sizes),
        context_{before, after,   facts_before_, facts_after_,
                 sizes_, options, held_mode(),   gradients},
        correspondence_(before, after),
        // A step on drawn inputs says little, and costs what a step does.
        cannot_record_(!gradients && examples.empty()) {}

  void run(VerifyReport& report) {
    if (context_.held_mode) {
      report.notes.push_back(
          fmt::format("compared in {} mode only: code that asked training() holds for that mode",
                      *context_.held_mode ? "training" : "eval"));
    }
    while (!pass(report)) {
    }
  }

  const detail::TrialSizes& sizes() const { return sizes_; }

  /// Structures that agreed elsewhere.
  void pass_over(const std::set<std::string>& structures) {
    for (const std::string& key : structures) passed_.emplace(key, RegionOutcome{});
  }
  std::set<std::string> agreed() const {
    std::set<std::string> structures;
    for (const auto& [key, outcome] : passed_) structures.insert(key);
    return structures;
  }

 private:
  std::optional<bool> held_mode() const {
    const auto model = before_.facts().held_mode();
    return model ? model : after_.facts().held_mode();
  }

  /// The regions of one structure, by the first of them.
  struct Structure {
    Region region;
    std::vector<InputFacts> inputs;
    std::string key;
    std::vector<Region> instances;
  };

  /// False when claims were dropped, so that there are other regions now.
  bool pass(VerifyReport& report) {
    const std::vector<Region> regions =
        options_.whole ? std::vector<Region>{correspondence_.whole()} : correspondence_.regions();
    std::vector<Structure> structures;
    std::unordered_map<std::string, std::size_t> known;
    for (const Region& region : regions) {
      std::vector<InputFacts> inputs = detail::input_facts(region, context_);
      std::vector<std::string> texts;
      for (const InputFacts& input : inputs) texts.push_back(input.to_string());
      std::string key = detail::structure_text(region, before_, after_, texts);
      const auto [place, is_new] = known.emplace(key, structures.size());
      if (is_new) structures.push_back({region, std::move(inputs), std::move(key), {}});
      structures[place->second].instances.push_back(region);
    }
    record(structures, report);
    std::vector<RegionOutcome> failed;
    for (const Structure& structure : structures) {
      if (passed_.contains(structure.key)) continue;
      RegionOutcome outcome = check(structure);
      tell(structures.size());
      if (outcome.ok) {
        passed_.emplace(structure.key, std::move(outcome));
        continue;
      }
      const bool may_drop = detail::cost_of_region(structure.region, context_) < kWidestFlops;
      if (may_drop && correspondence_.drop_claims(structure.region)) return false;
      failed.push_back(std::move(outcome));
      if (failed.size() >= kMostFailures) break;
    }
    report.regions = regions.size();
    report.distinct_regions = structures.size();
    for (const Structure& structure : structures) {
      const auto found = passed_.find(structure.key);
      if (found != passed_.end()) add(report, found->second);
    }
    for (RegionOutcome& outcome : failed) add(report, outcome);
    return true;
  }

  /// A line a second.
  void tell(std::size_t structures) {
    ++checked_;
    if (options_.progress == nullptr || milliseconds_since(told_) < kTellEvery) return;
    told_ = std::chrono::steady_clock::now();
    *options_.progress << fmt::format("verifying: {} of {} structures\n", checked_, structures)
                       << std::flush;
  }

  static void add(VerifyReport& report, const RegionOutcome& outcome) {
    const auto append = [](auto& to, const auto& from) {
      for (const auto& one : from) {
        if constexpr (std::is_same_v<std::decay_t<decltype(one)>, std::string>) {
          if (std::find(to.begin(), to.end(), one) != to.end()) continue;
        }
        to.push_back(one);
      }
    };
    append(report.results, outcome.results);
    append(report.errors, outcome.errors);
    append(report.notes, outcome.notes);
    append(report.not_compared, outcome.not_compared);
    append(report.left_out, outcome.left_out);
    for (const TrialSummary& trial : outcome.trials) {
      const auto same = [&](const TrialSummary& other) {
        return other.name == trial.name && other.sizes == trial.sizes &&
               other.divisor == trial.divisor;
      };
      if (std::none_of(report.trials.begin(), report.trials.end(), same)) {
        report.trials.push_back(trial);
      }
    }
  }

  /// A region that fails on drawn values only is seen from further back, where fewer are possible.
  RegionOutcome check(const Structure& structure) {
    RegionOutcome outcome = check(structure.region, structure.inputs);
    // The last of the other instances may hold what the first does not: its recorded values.
    if (outcome.ok && structure.instances.size() > 1) {
      outcome = with_recorded(std::move(outcome), structure.instances.back());
    }
    Region region = structure.region;
    while (!outcome.ok && !outcome.fails_on_recorded && !options_.whole) {
      if (has_free_inputs(region) || !correspondence_.widen(region)) break;
      if (detail::cost_of_region(region, context_) > kWidestFlops) {
        outcome.left_out.push_back(
            fmt::format("{} fails on drawn values; what makes them is too large to be compared "
                        "with it: verify with .whole = true",
                        detail::name_of(region, before_)));
        break;
      }
      record({{region, {}, "", {}}});
      outcome = check(region, detail::input_facts(region, context_));
    }
    return outcome;
  }

  /// Nothing behind its inputs narrows down what they can be: they are inputs and state of the model,
  /// or products with parameters, which take on any value.
  bool has_free_inputs(const Region& region) const {
    return std::all_of(region.inputs.begin(), region.inputs.end(), [&](const auto& input) {
      if (input.before == kNone) return true;
      const NodeId producer = before_.value(input.before).producer;
      if (producer == kNone) return true;
      const Node& node = before_.node(producer);
      return node.op->flops != nullptr &&
             std::any_of(node.inputs.begin(), node.inputs.end(), [&](ValueId operand) {
               return operand != kNone && before_.value(operand).kind == ValueKind::parameter;
             });
    });
  }

  RegionOutcome check(const Region& region, const std::vector<InputFacts>& inputs) const {
    return detail::check_region(region, inputs, context_, recorded_inputs(region));
  }

  RegionOutcome with_recorded(RegionOutcome outcome, const Region& instance) const {
    const auto recorded = recorded_inputs(instance);
    if (!recorded) return outcome;
    RegionOutcome other = detail::check_recorded(instance, detail::input_facts(instance, context_),
                                                 context_, *recorded);
    outcome.ok = outcome.ok && other.ok;
    outcome.fails_on_recorded = other.fails_on_recorded;
    outcome.results.insert(outcome.results.end(), other.results.begin(), other.results.end());
    outcome.errors.insert(outcome.errors.end(), other.errors.begin(), other.errors.end());
    return outcome;
  }

  /// Values for the inputs of the first and the last region of each structure, of one short run.
  void record(const std::vector<Structure>& structures, VerifyReport& report) {
    const auto start = std::chrono::steady_clock::now();
    record(structures);
    report.record_milliseconds += milliseconds_since(start);
  }

  void record(const std::vector<Structure>& structures) {
    if (options_.whole || cannot_record_) return;
    std::set<ValueId> wanted;
    const auto want = [&](const Region& region) {
      for (const detail::RegionInput& input : region.inputs) {
        const bool known = input.before == kNone || before_.value(input.before).tensor ||
                           recorded_.contains(input.before);
        if (!known) wanted.insert(input.before);
      }
    };
    for (const Structure& structure : structures) {
      if (passed_.contains(structure.key)) continue;
      want(structure.region);
      if (!structure.instances.empty() && records_last()) want(structure.instances.back());
    }
    if (wanted.empty()) return;
    try {
      if (recorded_sizes_.empty()) prepare_recording();
      recorded_.merge(detail::record_values(before_, recorded_sizes_, recorded_examples_, wanted,
                                            context_.held_mode.value_or(false)));
    } catch (const InternalError&) {
      throw;
    } catch (const Error&) {
      cannot_record_ = true;  // the model refuses short inputs, or these values
    }
  }

  /// The last region of a structure stands at the end of the model, as a rule: all of it would run.
  bool records_last() const {
    double bytes = 0;
    for (const ValueId id : before_.values()) {
      const Tensor& state = before_.value(id).tensor;
      if (state) bytes += static_cast<double>(state.layout().numel()) * size_of(state.dtype());
    }
    return bytes < kRecordedBytes;
  }

  /// The examples, as far as they were given as tensors; the others are drawn.
  void prepare_recording() {
    recorded_sizes_ = sizes_.shortened(kRecordedPositions);
    const auto shapes = sizes_.shapes(recorded_sizes_);
    std::vector<Tensor> drawn;
    for (std::size_t i = 0; i < before_.inputs().size(); ++i) {
      const TensorSpec& spec = before_.value(before_.inputs()[i]).spec;
      const Shape wanted(std::vector<Dim>(shapes[i].begin(), shapes[i].end()));
      Tensor input = i < examples_.size() ? examples_[i] : Tensor();
      if (!input || !input.shape().same_as(wanted)) {
        if (drawn.empty()) drawn = detail::draw_inputs(before_, recorded_sizes_, options_.seed);
        input = drawn[i].to(spec.dtype).to(spec.device);
      }
      recorded_examples_.push_back(std::move(input));
    }
  }

  std::optional<detail::RecordedInputs> recorded_inputs(const Region& region) const {
    detail::RecordedInputs result{{}, recorded_sizes_};
    bool any = false;
    for (const detail::RegionInput& input : region.inputs) {
      const bool known = input.before != kNone;
      const Value& value = known ? before_.value(input.before) : after_.value(input.after);
      const auto found = recorded_.find(input.before);
      if (value.tensor) {
        result.inputs.push_back(value.tensor);
      } else if (known && found != recorded_.end()) {
        result.inputs.push_back(found->second);
        any = true;
      } else {
        return std::nullopt;
      }
    }
    if (!any) return std::nullopt;
    return result;
  }

  const Graph& before_;
  const Graph& after_;
  const std::vector<Tensor>& examples_;
  const VerifyOptions& options_;
  std::vector<detail::ValueFacts> facts_before_;
  std::vector<detail::ValueFacts> facts_after_;
  detail::TrialSizes sizes_;
  detail::CheckContext context_;
  detail::Correspondence correspondence_;
  std::map<std::string, RegionOutcome> passed_;  // by structure
  std::unordered_map<ValueId, Tensor> recorded_;
  DimBindings recorded_sizes_;
  std::vector<Tensor> recorded_examples_;
  bool cannot_record_;
  std::size_t checked_ = 0;
  std::chrono::steady_clock::time_point told_ = std::chrono::steady_clock::now();
};

std::string text_of(const Comparison& c) {
  std::string text = fmt::format("{} {} ({}{}): ", c.ok ? "ok  " : "FAIL", c.name,
                                 c.bound ? "" : c.trial + ", ", c.training ? "training" : "eval");
  if (c.bound || c.allowed_error > 0) {
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

bool all_ok(const std::vector<Comparison>& results) {
  return std::all_of(results.begin(), results.end(), [](const Comparison& c) { return c.ok; });
}

}  // namespace

namespace detail {

void require_verified(const Schedule& schedule, const char* caller, bool accept_uncompared,
                      std::ostream* log) {
  const VerifyReport report = verify(schedule, {.progress = log});
  if (log != nullptr && report.regions > 0) *log << caller << ": " << report.summary() << '\n';
  if (!report.ok()) {
    throw VerificationError(fmt::format(
        "{} refused: the scheduled model differs from the model\n{}", caller, report.to_string()));
  }
  if (report.not_compared.empty() || accept_uncompared) return;
  throw VerificationError(fmt::format(
      "{} refused: these results were compared on no finite value: {}. Give create_schedule "
      "example "
      "inputs that the model gives numbers for, or accept it with accept_uncompared\n{}",
      caller, fmt::join(report.not_compared, ", "), report.to_string()));
}

VerifyReport verify_graphs(const Graph& original, const Graph& rewritten,
                           const std::vector<Tensor>& examples, const VerifyOptions& options,
                           std::set<std::string>* agreed) {
  const auto start = std::chrono::steady_clock::now();
  const Graph before = without_effects(original);
  const Graph after = without_effects(rewritten);
  VerifyReport report;
  compare_results(before, after, report);
  if (!report.errors.empty()) return report;
  compare_masks(sites_of(before), sites_of(after), report);
  Verification verification(before, after, examples, options, false);
  if (agreed != nullptr) verification.pass_over(*agreed);
  verification.run(report);
  if (agreed != nullptr) agreed->merge(verification.agreed());
  report.milliseconds = milliseconds_since(start);
  return report;
}

}  // namespace detail

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

std::string VerifyReport::summary() const {
  if (regions == 0) return fmt::format("verified: nothing was rewritten ({:.1f} ms)", milliseconds);
  return fmt::format(
      "verified {} rewritten region{} of {} structure{}: {} results of {} trials {}, {} not "
      "compared, {} left out; {:.1f} ms, {:.1f} of them to record values",
      regions, regions == 1 ? "" : "s", distinct_regions, distinct_regions == 1 ? "" : "s",
      results.size(), trials.size(), ok() ? "agree" : "do NOT all agree", not_compared.size(),
      left_out.size(), milliseconds, record_milliseconds);
}

std::string VerifyReport::to_string() const {
  std::string text;
  std::string region;
  for (const Comparison& c : results) {
    if (!c.bound && c.ok) continue;
    if (c.region != region) text += fmt::format("{}:\n", region = c.region);
    text += text_of(c);
  }
  for (const std::string& mask : masks_missing) {
    text += fmt::format("FAIL what the model draws is not drawn: {}\n", mask);
  }
  for (const std::string& mask : masks_added) {
    text += fmt::format("FAIL what the model does not draw is drawn: {}\n", mask);
  }
  for (const std::string& error : errors) text += fmt::format("FAIL {}\n", error);
  for (const std::string& note : notes) text += fmt::format("note: {}\n", note);
  for (const std::string& name : not_compared) {
    text += fmt::format("not compared on any finite value: {}\n", name);
  }
  for (const std::string& trial : left_out) text += fmt::format("left out: {}\n", trial);
  for (const TrialSummary& trial : trials) {
    const auto in_trial = [&](const Comparison& c) { return c.trial == trial.name; };
    const auto compared = std::count_if(results.begin(), results.end(), in_trial);
    const auto equal = std::count_if(results.begin(), results.end(),
                                     [&](const Comparison& c) { return in_trial(c) && c.ok; });
    text += fmt::format("{}: {} of {} results agree on inputs {}{}\n", trial.name, equal, compared,
                        shapes_of(trial),
                        trial.divisor == 1 ? "" : fmt::format(", widths / {}", trial.divisor));
  }
  return text + summary() + "\n";
}

VerifyReport verify(const Schedule& schedule, const VerifyOptions& options) {
  const auto used = schedule.use("[verify] the schedule");
  const auto start = std::chrono::steady_clock::now();
  const Graph before = detail::without_effects(schedule.original());
  const Graph after = detail::without_effects(schedule.graph());
  VerifyReport report;
  compare_state(after, detail::module_tree(schedule.model()), report);
  if (before.outputs().size() != after.outputs().size()) {
    report.errors.push_back(fmt::format("the schedule has {} outputs; the model has {}",
                                        after.outputs().size(), before.outputs().size()));
    return report;
  }
  compare_results(before, after, report);
  Verification verification(before, after, schedule.examples(), options, true);
  const DimBindings sizes = verification.sizes().small();
  compare_masks(detail::masks_of(before, sizes), detail::masks_of(after, sizes), report);
  verification.run(report);
  report.milliseconds = milliseconds_since(start);
  return report;
}

}  // namespace tenon
