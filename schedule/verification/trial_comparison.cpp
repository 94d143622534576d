#include "schedule/verification/trial_comparison.h"

#include <algorithm>
#include <cmath>

#include "graph/program.h"
#include "schedule/facts/hidden_rows.h"
#include "schedule/joint_graph.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// Of a row, in place of the terms of its elements.
constexpr double kCoarse = 4;

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

/// A gradient that is undefined on one side counts as zero.
std::vector<double> doubles_or_zeros(const Tensor& tensor, std::size_t count) {
  return tensor ? tensor.to_doubles() : std::vector<double>(count, 0.0);
}

/// The size of a number among the first ones of the inputs, at most 1.
double unit_of(const std::vector<Tensor>& inputs) {
  constexpr std::int64_t kFirst = 256;
  double sum = 0;
  double count = 0;
  for (const Tensor& input : inputs) {
    if (!is_floating(input.dtype()) || input.layout().numel() == 0) continue;
    const Tensor flat = input.reshape({-1});
    const std::int64_t some = std::min(kFirst, input.layout().numel());
    for (const double number : narrow(flat, 0, 0, some).to_doubles()) {
      if (!std::isfinite(number)) continue;
      sum += std::min(1.0, std::abs(number));
      ++count;
    }
  }
  return count == 0 ? 0 : sum / count;
}

/// `cotangents`, but nothing flows back through output elements that are not finite.
std::vector<Tensor> silenced(const std::vector<Tensor>& cotangents,
                             const std::vector<Tensor>& outputs) {
  std::vector<Tensor> result = cotangents;
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (!result[i]) continue;
    const std::vector<double> values = outputs[i].to_doubles();
    std::vector<double> weights = result[i].to_doubles();
    for (std::size_t k = 0; k < values.size(); ++k) {
      if (!std::isfinite(values[k])) weights[k] = 0;
    }
    result[i] = tensor(std::span<const double>(weights), result[i].shape(), {result[i].dtype()});
  }
  return result;
}

std::vector<Tensor> joined(const RunResults64& results) {
  std::vector<Tensor> all = results.outputs;
  all.insert(all.end(), results.gradients.begin(), results.gradients.end());
  return all;
}

}  // namespace

/// The results of both sides: outputs, then gradients by input.
struct TrialComparison::Runs {
  ReferenceRun model;
  RunMode how;
  std::vector<Tensor> exact;  // the model's meaning
  std::vector<Tensor> meant;  // the schedule's
  std::vector<Tensor> model_bound;
  std::vector<Tensor> scheduled_bound;
  std::vector<std::vector<double>> terms;  // found when asked for

  const Tensor& known(std::size_t r) const { return exact[r] ? exact[r] : meant[r]; }
  bool outputs_are_finite(std::size_t outputs) const {
    return std::all_of(exact.begin(), exact.begin() + static_cast<std::ptrdiff_t>(outputs),
                       [](const Tensor& output) {
                         return !is_floating(output.dtype()) || all_finite(output.to_doubles());
                       });
  }
};

TrialComparison::TrialComparison(const Region& region, const std::vector<InputFacts>& inputs,
                                 const CheckContext& context)
    : region_(region), inputs_(inputs), context_(context) {
  for (const InputFacts& input : inputs) {
    differentiable_.push_back(context.gradients && input.facts.is_differentiable);
  }
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

RunMode TrialComparison::mode(bool training, bool gradients) const {
  return {training, gradients && context_.gradients,
          Generator(context_.options.seed).next_forward()};
}

void TrialComparison::try_model(const Sides& sides, const std::vector<Tensor>& inputs) const {
  ReferenceRun(sides.before, differentiable_).run(inputs, {}, mode(false, false));
}

std::optional<std::string> TrialComparison::refusal_of_model(const Sides& sides, const Trial& trial,
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

void TrialComparison::round_to_dtypes(const Sides& sides, Trial& trial) const {
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

TrialResults TrialComparison::run(const Sides& sides, const Trial& trial, bool training) const {
  Trial own = trial;
  if (trial.gradients && context_.gradients) {
    const auto outputs = ReferenceRun(sides.before, differentiable_)
                             .run(trial.inputs, trial.cotangents, mode(training, false))
                             .outputs;
    own.cotangents = silenced(trial.cotangents, outputs);
  }
  TrialResults results = compare(sides, sides.before, own, training);
  if (results.note.empty() || !sides.zeroed) return results;
  results.note = kHiddenRowsNote;
  Trial meaning = own;
  meaning.bound = false;
  const TrialResults zeroed = compare(sides, *sides.zeroed, meaning, training);
  results.comparisons.insert(results.comparisons.end(), zeroed.comparisons.begin(),
                             zeroed.comparisons.end());
  results.results.insert(results.results.end(), zeroed.results.begin(), zeroed.results.end());
  return results;
}

TrialComparison::Runs TrialComparison::run_both(const Sides& sides, const Graph& model,
                                                const Trial& trial, bool training) const {
  Runs runs{
      ReferenceRun(model, differentiable_), mode(training, trial.gradients), {}, {}, {}, {}, {}};
  runs.exact = joined(runs.model.run(trial.inputs, trial.cotangents, runs.how));
  runs.meant = joined(
      ReferenceRun(sides.after, differentiable_).run(trial.inputs, trial.cotangents, runs.how));
  if (trial.bound) {
    const std::vector<Tensor> given = bound_inputs(sides.before, trial);
    runs.model_bound = run_bound(sides.before, given, trial, training);
    runs.scheduled_bound = run_bound(sides.after, given, trial, training);
  }
  return runs;
}

TrialResults TrialComparison::compare(const Sides& sides, const Graph& model, const Trial& trial,
                                      bool training) const {
  Runs runs = run_both(sides, model, trial, training);
  const bool finite = runs.outputs_are_finite(region_.outputs.size());
  const double unit = unit_of(trial.inputs);
  TrialResults results;
  for (std::size_t r = 0; r < names_.size(); ++r) {
    if (!runs.exact[r] && !runs.meant[r]) continue;
    // A row that sees nothing is no number in the model; attention may give zeros, nothing else.
    const Excused excused{names_[r].is_gradient && !finite, !trial.hides_rows || sides.zeroed,
                          trial.is_extreme, trial.is_extreme || trial.is_aimed, unit};
    Comparison c = compare_result(runs, trial, r, excused);
    c.training = training;
    if (!names_[r].is_gradient && c.finite_for_nan > 0) {
      results.note = "the schedule gives numbers in places where the model gives NaN";
    }
    results.comparisons.push_back(std::move(c));
    results.results.push_back(r);
  }
  return results;
}

Comparison TrialComparison::compare_result(Runs& runs, const Trial& trial, std::size_t r,
                                           Excused excused) const {
  Comparison c;
  c.trial = trial.name;
  c.name = names_[r].text;
  c.region = context_.options.whole ? "" : name_of(region_, context_.before);
  c.bound = trial.bound && trial.is_first;
  const Tensor& exact = runs.exact[r];
  const Tensor& meant = runs.meant[r];
  c.is_empty = runs.known(r).layout().numel() == 0;
  const bool fits =
      !exact || !meant || (exact.shape().same_as(meant.shape()) && exact.dtype() == meant.dtype());
  if (!fits) {
    c.float64_difference = HUGE_VAL;
  } else if (is_floating(runs.known(r).dtype())) {
    compare_numbers(c, runs, trial, r, excused);
  } else {
    const Agreement agreement = compare_exactly(exact, meant);
    c.float64_difference = agreement.difference;
    c.compared = agreement.compared;
    c.ok = agreement.ok;
    if (trial.bound) {
      c.max_abs_difference =
          compare_exactly(runs.model_bound[r], runs.scheduled_bound[r]).largest_difference;
    }
  }
  return c;
}

void TrialComparison::compare_numbers(Comparison& c, Runs& runs, const Trial& trial, std::size_t r,
                                      Excused excused) const {
  const Tensor& known = runs.known(r);
  const auto count = static_cast<std::size_t>(known.layout().numel());
  const Sensitivity terms = [&]() -> const std::vector<double>& {
    return terms_of(runs, trial, r);
  };
  const auto exact = doubles_or_zeros(runs.exact[r], count);
  const Agreement meaning =
      compare_meaning(exact, doubles_or_zeros(runs.meant[r], count), terms, excused);
  c.float64_difference = meaning.difference;
  c.float64_allowed = meaning.allowed;
  c.compared = meaning.compared;
  c.finite_for_nan = meaning.finite_for_nan;
  c.ok = meaning.ok;
  if (!trial.bound || (!runs.model_bound[r] && !runs.scheduled_bound[r])) return;
  const Tensor& bound_known = runs.model_bound[r] ? runs.model_bound[r] : runs.scheduled_bound[r];
  const auto model = doubles_or_zeros(runs.model_bound[r], count);
  const auto scheduled = doubles_or_zeros(runs.scheduled_bound[r], count);
  const Agreement bound =
      compare_bound(exact, model, scheduled, terms, unit_roundoff(bound_known.dtype()),
                    columns_of(known), excused);
  c.scheduled_error = bound.difference;
  c.allowed_error = bound.allowed;
  for (std::size_t i = 0; i < count; ++i) {
    const double apart = std::abs(scheduled[i] - model[i]);
    if (std::isfinite(apart)) c.max_abs_difference = std::max(c.max_abs_difference, apart);
    const double off = std::abs(model[i] - exact[i]);
    if (std::isfinite(off)) c.unscheduled_error = std::max(c.unscheduled_error, off);
  }
  c.ok = c.ok && bound.ok;
}

const std::vector<double>& TrialComparison::terms_of(Runs& runs, const Trial& trial,
                                                     std::size_t r) const {
  if (trial.is_coarse) runs.terms.resize(runs.exact.size());
  if (runs.terms.empty()) {
    runs.terms = runs.model.sensitivity(trial.inputs, trial.cotangents, runs.how);
  }
  if (trial.is_coarse && runs.exact[r]) runs.terms[r] = row_sizes(runs.exact[r]);
  runs.terms[r].resize(static_cast<std::size_t>(runs.known(r).layout().numel()), 0.0);
  return runs.terms[r];
}

/// Inputs, then the cotangents of floating outputs, in the dtypes of the model and on its device.
std::vector<Tensor> TrialComparison::bound_inputs(const Graph& graph, const Trial& trial) const {
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
std::vector<Tensor> TrialComparison::run_bound(const Graph& graph, const std::vector<Tensor>& given,
                                               const Trial& trial, bool training) const {
  GradientGraph program;
  // Behind scores of a million or more, backward kernels that compute them again differ by what their
  // digits do not hold: what counts there is that results are finite, and right.
  if (trial.gradients && context_.gradients && !trial.is_extreme) {
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
    const std::size_t outputs = region_.outputs.size();
    const std::size_t place = i < outputs ? i : outputs + program.gradient_inputs.at(i - outputs);
    ordered[place] = results[i].cpu();
  }
  return ordered;
}

}  // namespace tenon::detail
