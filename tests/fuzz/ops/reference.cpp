#include "tests/fuzz/ops/reference.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {
namespace {

/// Whether `handle` was changed through another one since it was computed.
bool is_stale(const Handle& handle) {
  return handle.record && handle.version != handle.array.memory->version;
}

/// Sites from here on are those of dropouts outside of modules: the upper half of 24 bits.
constexpr std::int64_t kFirstOuterSite = 1 << 23;

}  // namespace

void RandomNumbers::enter_module(bool training) {
  in_module = true;
  begun = training;
  forward += training;
  site = 0;
}

RandomNumbers RandomNumbers::at_dropout(bool draws) const {
  RandomNumbers result = *this;
  const bool begins = in_module && draws && !begun;
  result.begun |= begins;
  result.forward += begins;
  return result;
}

RandomNumbers RandomNumbers::after_dropout(bool draws) const {
  RandomNumbers result = at_dropout(draws);
  ++(in_module ? result.site : result.outer_dropouts);
  return result;
}

RandomNumbers RandomNumbers::after_tensor() const {
  RandomNumbers result = at_dropout(true);
  ++(in_module ? result.site : result.outer_tensors);
  return result;
}

std::string RandomNumbers::key_of_tensor() const {
  if (!in_module) return fmt::format("seed {}, tensor {}", seed, outer_tensors);
  return fmt::format("seed {}, forward {}, site {}", seed, at_dropout(true).forward, site);
}

std::int64_t RandomNumbers::site_of_dropout() const {
  return in_module ? site : kFirstOuterSite + outer_dropouts;
}

Evaluation::Evaluation(Reference& reference_interpreter, const Step& step_to_run)
    : reference(reference_interpreter), step(step_to_run), grad_mode_(!step_to_run.no_grad) {
  for (const int reg : step.operands) handles_.push_back(reference.registers.at(reg));
}

bool Evaluation::need(bool holds, unsigned refusal) {
  if (!holds) outcome.required |= refusal;
  return holds;
}

int Evaluation::axis(std::int64_t given, int rank) {
  const std::int64_t count = std::max(rank, 1);
  if (!need(given >= -count && given < count, kShape)) return 0;
  return static_cast<int>(given < 0 ? given + count : given);
}

void Evaluation::need_one_dtype() {
  for (int i = 1; i < num_operands(); ++i) need(array(i).dtype == array(0).dtype, kDType);
}

void Evaluation::need_float(int operand) { need(is_float(array(operand).dtype), kDType); }

void Evaluation::need_number(int operand, bool with_bool) {
  const DType dtype = array(operand).dtype;
  need(computes(dtype) && (with_bool || dtype != DType::boolean), kDType);
}

Sizes Evaluation::need_broadcast(const Sizes& a, const Sizes& b) {
  const auto sizes = broadcast(a, b);
  need(sizes.has_value(), kShape);
  return sizes.value_or(a);
}

void Evaluation::returns(int operand) { outcome.result = handle(operand); }

void Evaluation::copies(Array result) {
  moves(std::move(result), [&] {
    std::vector<Source> sources;
    for (std::int64_t i = 0; i < array(0).numel(); ++i) sources.push_back({0, i});
    return sources;
  });
}

void Evaluation::moves(Array result, const std::function<std::vector<Source>()>& sources) {
  saves_nothing = true;
  outcome.result = std::make_shared<Handle>();
  outcome.result->array = std::move(result);
  if (!records() || not_differentiable) return;
  const std::vector<Source> from = sources();
  for (std::size_t i = 0; i < from.size(); ++i) {
    slope(static_cast<std::int64_t>(i), from[i].operand, from[i].in, 1);
  }
}

void Evaluation::makes(DType dtype, const Sizes& sizes, Numbers values, Numbers allowed,
                       bool signed_zero) {
  outcome.result = std::make_shared<Handle>();
  Check check{outcome.result, std::move(values), std::move(allowed), signed_zero};
  outcome.result->array = make_array(dtype, sizes, {});
  outcome.result->array.memory->cells = rounded(check);
  outcome.checks.push_back(std::move(check));
}

void Evaluation::writes(int target, Numbers values, std::vector<int> from, Numbers allowed) {
  target_ = target;
  written_from_ = std::move(from);
  const Handle& written = *handle(target);
  need(!written.array.overlaps_itself(), kValue);
  outcome.checks.push_back({handle(target), std::move(values), std::move(allowed)});
}

bool Evaluation::wants(int operand) const { return grad_mode_ && handle(operand)->requires_grad; }

bool Evaluation::wants_any() const {
  for (int i = 0; i < num_operands(); ++i) {
    if (wants(i)) return true;
  }
  return false;
}

bool Evaluation::records() const { return reference.follows_errors || wants_any(); }

void Evaluation::slope(std::int64_t out, int operand, std::int64_t in, Number value,
                       Number magnitude) {
  if (!wants(operand) && !reference.follows_errors) return;
  entries_.push_back({out, operand, in, value, magnitude});
}

Edge Evaluation::edge_of(const HandlePtr& handle) const {
  Edge edge;
  edge.dtype = handle->array.dtype;
  edge.numel = handle->array.numel();
  if (!handle->requires_grad) return edge;
  edge.record = handle->record;
  if (!edge.record) edge.leaf = handle;
  return edge;
}

RecordPtr Evaluation::make_record() {
  auto record = std::make_shared<Record>();
  record->sequence = reference.next_sequence++;
  record->entries = std::move(entries_);
  for (int i = 0; i < num_operands(); ++i) {
    const HandlePtr& handle = this->handle(i);
    const bool is_read = target_ < 0 || std::count(written_from_.begin(), written_from_.end(), i);
    record->edges.push_back(is_read ? edge_of(handle) : Edge{});
    record->unknown |= is_stale(*handle);
    if (!saves_nothing) {
      record->saved.emplace_back(handle->array.memory, handle->array.memory->version);
    }
  }
  return record;
}

/// To first order. What does not come by slopes is open where an operand has an error.
Numbers Evaluation::errors_of(const Array& array, const Check* check) const {
  const bool is_main = check == nullptr || target_ >= 0 || check->handle == outcome.result;
  const bool by_slopes = is_main && is_float(array.dtype) && !not_differentiable;
  Numbers result(static_cast<std::size_t>(array.numel()));
  for (std::size_t i = 0; check != nullptr && i < check->allowed.size(); ++i) {
    result[i] = 2 * check->allowed[i];
  }
  std::vector<Numbers> given;
  bool any = false;
  for (const HandlePtr& handle : handles_) {
    given.push_back(handle->array.errors());
    for (const Number error : given.back()) any = any || error != 0;
  }
  if (any && !by_slopes) return Numbers(result.size(), kInfinity);
  for (const Entry& entry : entries_) {
    const Number error =
        given[static_cast<std::size_t>(entry.operand)].at(static_cast<std::size_t>(entry.in));
    if (error == 0 || !by_slopes) continue;
    result[static_cast<std::size_t>(entry.out)] += error * entry.magnitude;
  }
  const Numbers values = check != nullptr ? check->value : array.values();
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (result[i] == 0) continue;
    result[i] += ulp(array.dtype, values[i]);
    if (!(result[i] < kInfinity) || !std::isfinite(values[i])) result[i] = kInfinity;
  }
  return result;
}

void Evaluation::follow_errors() {
  for (const Check& check : outcome.checks) {
    outcome.errors.emplace_back(check.handle->array, errors_of(check.handle->array, &check));
  }
  if (!outcome.result || !outcome.checks.empty() || outcome.draw) return;
  const Array& array = outcome.result->array;
  const bool is_view = std::any_of(handles_.begin(), handles_.end(), [&](const HandlePtr& handle) {
    return handle->array.memory == array.memory;
  });
  if (!is_view) outcome.errors.emplace_back(array, errors_of(array, nullptr));
}

void Evaluation::finish() {
  const bool recorded = wants_any() && !not_differentiable;
  if (recorded && std::any_of(handles_.begin(), handles_.end(),
                              [](const HandlePtr& handle) { return is_stale(*handle); })) {
    may_refuse(kValue);
  }
  if (refused()) return;
  if (reference.follows_errors) follow_errors();
  if (target_ >= 0) return finish_write();
  const HandlePtr& result = outcome.result;
  const bool is_new =
      result && std::find(handles_.begin(), handles_.end(), result) == handles_.end();
  if (!recorded || !is_new || !is_float(result->array.dtype)) return;
  const RecordPtr record = make_record();
  record->dtype = result->array.dtype;
  record->numel = result->array.numel();
  const std::shared_ptr<Memory>& memory = result->array.memory;
  if (!saves_nothing) record->saved.emplace_back(memory, memory->version);
  result->requires_grad = true;
  result->record = record;
  result->version = memory->version;
}

void Evaluation::finish_write() {
  const HandlePtr target = handle(target_);
  const bool flows =
      is_float(target->array.dtype) && std::any_of(written_from_.begin(), written_from_.end(),
                                                   [&](int operand) { return wants(operand); });
  const bool tracked = grad_mode_ && (target->requires_grad || flows);
  if (tracked) {
    need(!(target->requires_grad && !target->record), kValue);
    // Views, and memory that several tensors share: the others would not know.
    may_refuse(kValue);
  }
  if (refused()) return;
  const RecordPtr record = flows ? make_record() : nullptr;
  if (record) {
    record->dtype = target->array.dtype;
    record->numel = target->array.numel();
  }
  outcome.commit = [target, record, tracked] {
    ++target->array.memory->version;
    if (!tracked) return;
    target->record = record;
    target->requires_grad = record != nullptr;
    target->version = target->array.memory->version;
  };
}

void elementwise(Evaluation& e, const std::vector<int>& operands, DType result,
                 const Formula& formula, bool exact, int target) {
  Sizes sizes = e.array(operands[0]).sizes;
  for (const int operand : operands) sizes = e.need_broadcast(sizes, e.array(operand).sizes);
  if (target >= 0) e.need(sizes == e.array(target).sizes, kShape);
  if (e.refused()) return;
  const bool records = e.records() && !e.not_differentiable && is_float(result);
  std::vector<Numbers> values;
  std::vector<Numbers> places;
  for (const int operand : operands) {
    values.push_back(expand(e.array(operand), sizes).values());
    if (records) places.push_back(expand(positions(e.array(operand).sizes), sizes).values());
  }
  const std::size_t count = values[0].size();
  Numbers results(count);
  Numbers allowed(exact ? 0 : count);
  for (std::size_t i = 0; i < count; ++i) {
    Number x[3] = {};
    for (std::size_t k = 0; k < operands.size(); ++k) x[k] = values[k][i];
    const Local local = formula(x);
    results[i] = local.value;
    if (!exact) allowed[i] = local.allowed;
    if (!records) continue;
    for (std::size_t k = 0; k < operands.size(); ++k) {
      const Number slope = local.slope[k];
      const Number magnitude = local.magnitude[k] < 0 ? std::fabs(slope) : local.magnitude[k];
      e.slope(static_cast<std::int64_t>(i), operands[k], as_integer(places[k][i]), slope,
              magnitude);
    }
  }
  if (target >= 0) {
    e.writes(target, std::move(results), operands, std::move(allowed));
  } else {
    e.makes(result, sizes, std::move(results), std::move(allowed));
  }
}

Numbers rounded(const Check& check) {
  const DType dtype = check.handle->array.dtype;
  Numbers result = check.value;
  if (!is_float(dtype)) return result;
  for (Number& value : result) value = round_to(dtype, value);
  return result;
}

Outcome Reference::evaluate(const Step& step) {
  Evaluation evaluation(*this, step);
  step.call->evaluate(evaluation);
  evaluation.finish();
  return std::move(evaluation.outcome);
}

void Reference::commit(const Step& step, const Outcome& outcome,
                       const std::vector<Numbers>& found) {
  for (std::size_t i = 0; i < outcome.checks.size(); ++i) {
    outcome.checks[i].handle->array.write(found[i]);
  }
  for (const auto& [array, errors] : outcome.errors) array.write_errors(errors);
  if (outcome.draw) drawn.emplace(outcome.draw->key, outcome.result->array.values());
  if (outcome.commit) outcome.commit();
  if (step.result >= 0 && outcome.result) registers[step.result] = outcome.result;
}

void Reference::commit(const Step& step, const Outcome& outcome) {
  std::vector<Numbers> values;
  for (const Check& check : outcome.checks) values.push_back(rounded(check));
  commit(step, outcome, values);
}

}  // namespace tenon::op_fuzz
