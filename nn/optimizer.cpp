#include "nn/optimizer.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "nn/clip_grad.h"
#include "nn/detail/load_state.h"
#include "tensor/interpreter.h"
#include "tensor/support/check.h"
#include "tensor/support/text.h"

namespace tenon::nn {

namespace detail {

std::vector<std::int64_t> matching_positions(const std::vector<std::string>& names,
                                             const std::vector<std::string>& globs) {
  std::vector<std::int64_t> positions;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (text::matches_any(globs, names[i])) positions.push_back(static_cast<std::int64_t>(i));
  }
  return positions;
}

void check_rate(const char* optimizer, const char* option, double value) {
  TENON_CHECK(std::isfinite(value) && value >= 0, ValueError,
              "[{}] {} is {}; needed a finite number, at least 0", optimizer, option, value);
}

}  // namespace detail

using text::quote;

Optimizer::Optimizer(std::string type, std::vector<Group> groups, const OptimizerOptions& options)
    : type_(std::move(type)), options_(options) {
  detail::check_rate(type_.c_str(), "max_grad_norm", options.max_grad_norm);
  std::vector<Slot>& slots = state_.slots;
  for (const Group& group : groups) {
    detail::check_rate(type_.c_str(), "lr", group.lr);
    for (const auto& [name, param] : group.parameters) {
      add_slot(name, param, state_.lr.size(), group.state_names);
    }
    const Device device = slots.empty() ? kCpu : slots[0].param.device();
    state_.lr.push_back(full({}, group.lr, {DType::float32, device}));
  }
  TENON_CHECK(!slots.empty(), ValueError, "[{}] there are no parameters", type_);
  std::unordered_set<const void*> tensors;
  std::unordered_set<std::string> names;
  for (const Slot& slot : slots) {
    const bool is_new = tensors.insert(slot.param.impl().get()).second;
    TENON_CHECK(is_new && names.insert(slot.name).second, ValueError,
                "[{}] parameter {} is given twice", type_, text::quote(slot.name));
    TENON_CHECK(slot.param.device() == slots[0].param.device(), DeviceError,
                "[{}] parameter {} is on {}; the first one is on {}", type_, text::quote(slot.name),
                slot.param.device().to_string(), slots[0].param.device().to_string());
  }
  state_.steps =
      zeros({static_cast<std::int64_t>(slots.size())}, {DType::float32, slots[0].param.device()});
}

void Optimizer::add_slot(const std::string& name, const Tensor& param, std::size_t group,
                         const std::vector<std::string>& state_names) {
  TENON_CHECK(param.is_eager() && is_floating(param.dtype()), ValueError,
              "[{}] parameter {} is {}; needed a floating tensor with data", type_, text::quote(name),
              param.defined() ? param.spec().to_string() : "undefined");
  Slot slot{name, param, Tensor(), group, state_names, {}};
  const NoGradGuard no_grad;
  if (has_master(param)) slot.master = cast(param, DType::float32);
  for (std::size_t i = 0; i < state_names.size(); ++i) {
    slot.state.push_back(zeros(param.shape(), {slot.updated().dtype(), param.device()}));
  }
  state_.slots.push_back(std::move(slot));
}

// --- following parameters that were converted or moved ------------------------------------------

bool Optimizer::has_master(const Tensor& param) const {
  const bool is_narrow = param.dtype() == DType::float16 || param.dtype() == DType::bfloat16;
  return is_narrow && options_.master_weights;
}

bool Optimizer::follows(const Slot& slot) const {
  const Tensor& param = slot.param;
  const Tensor& updated = slot.updated();
  return slot.master.defined() == has_master(param) && updated.device() == param.device() &&
         updated.layout().sizes == param.layout().sizes &&
         std::all_of(slot.state.begin(), slot.state.end(), [&](const Tensor& state) {
           return state.dtype() == updated.dtype() && state.device() == updated.device() &&
                  state.layout().sizes == param.layout().sizes;
         });
}

bool Optimizer::follows_all() const {
  const Device device = state_.slots[0].param.device();
  return state_.steps.device() == device &&
         std::all_of(state_.slots.begin(), state_.slots.end(), [&](const Slot& slot) {
           return slot.param.device() == device && follows(slot);
         });
}

void Optimizer::follow(Slot& slot) const {
  const Tensor& param = slot.param;
  const Device device = state_.slots[0].param.device();
  TENON_CHECK(param.device() == device, ValueError,
              "[{}] parameter {} is on {} now, and the first one on {}; needed all on one device",
              type_, text::quote(slot.name), param.device().to_string(), device.to_string());
  if (!has_master(param)) slot.master = Tensor();
  if (has_master(param)) {
    slot.master = slot.master ? slot.master.to(device) : cast(param, DType::float32);
  }
  std::vector<Tensor> kept = slot.state;
  kept.push_back(slot.updated());
  for (const Tensor& tensor : kept) {
    TENON_CHECK(tensor.layout().sizes == param.layout().sizes, ValueError,
                "[{}] parameter {} is {} now, and its state {}; needed the shape that it had, or "
                "another optimizer",
                type_, text::quote(slot.name), param.spec().to_string(), tensor.spec().to_string());
  }
  for (Tensor& tensor : slot.state) tensor = tensor.to(slot.updated().dtype()).to(device);
}

Optimizer::State Optimizer::followed() const {
  State state = state_;
  if (follows_all()) return state;
  const NoGradGuard no_grad;
  for (Slot& slot : state.slots) follow(slot);
  const Device device = state.slots[0].param.device();
  for (Tensor& lr : state.lr) lr = lr.to(device);
  state.steps = state.steps.to(device);
  return state;
}

/// Handles on the state follow as well, and Programs notice.
void Optimizer::adopt(const State& state) {
  const auto take = [](Tensor& own, const Tensor& other) {
    if (own && other && !own.is_same(other)) own.set_data_(other);
    if (own.defined() != other.defined()) own = other;
  };
  for (std::size_t i = 0; i < state.slots.size(); ++i) {
    take(state_.slots[i].master, state.slots[i].master);
    for (std::size_t k = 0; k < state.slots[i].state.size(); ++k) {
      take(state_.slots[i].state[k], state.slots[i].state[k]);
    }
  }
  for (std::size_t i = 0; i < state.lr.size(); ++i) take(state_.lr[i], state.lr[i]);
  take(state_.steps, state.steps);
}

void Optimizer::follow_parameters() {
  const ExclusiveUse::Scope use(in_use_, "[follow_parameters] the optimizer");
  if (!follows_all()) adopt(followed());
}

// --- steps --------------------------------------------------------------------------------------

Tensor Optimizer::step() {
  std::vector<Tensor> gradients;
  for (const Slot& slot : state_.slots) gradients.push_back(slot.param.grad());
  return update(gradients);
}

/// Everything is computed before anything is assigned: what throws leaves all as it was.
Tensor Optimizer::update(std::span<const Tensor> gradients) {
  TENON_CHECK(gradients.size() == state_.slots.size(), ValueError,
              "[{}] {} gradients were given; needed one for each of {} parameters", type_,
              gradients.size(), state_.slots.size());
  const ExclusiveUse::Scope use(in_use_, "[step] the optimizer");
  const NoGradGuard no_grad;
  const bool follows = follows_all();
  const bool traced = std::any_of(gradients.begin(), gradients.end(),
                                  [](const Tensor& g) { return g && !g.is_eager(); });
  TENON_CHECK(follows || !traced, ValueError,
              "[{}] parameters were converted or moved since the last step, and this one is being "
              "traced; call follow_parameters() before",
              type_);
  const State other = follows ? State() : followed();
  const State& state = follows ? state_ : other;
  GlobalNorm global;
  if (options_.max_grad_norm > 0) {
    detail::require_gradients(parameters(), gradients);
    global = global_norm(gradients, options_.max_grad_norm);
  }
  const Tensor steps = counted(state, gradients);
  std::vector<Updated> results;
  for (std::size_t group = 0; group < state.lr.size(); ++group) {
    for (const auto copies : {RoundedCopy::none, RoundedCopy::float16, RoundedCopy::bfloat16}) {
      results.push_back(updated(state, steps, gradients,
                                {.lr = state.lr[group],
                                 .grad_scale = global.clip_coefficient,
                                 .group = group,
                                 .copies = copies}));
    }
  }
  if (!follows) adopt(other);
  state_.steps.copy_(steps);
  for (const auto& [slots, values] : results) {
    for (std::size_t i = 0; i < slots.size(); ++i) {
      Tensor(slots[i]->updated()).copy_(values[i].param);
      for (std::size_t k = 0; k < slots[i]->state.size(); ++k) {
        Tensor(slots[i]->state[k]).copy_(values[i].state.at(k));
      }
      if (slots[i]->master) Tensor(slots[i]->param).copy_(values[i].copy);
    }
  }
  return global.norm;
}

/// What an update of its master weight returns for the parameter itself.
RoundedCopy Optimizer::Slot::copies() const {
  if (!master) return RoundedCopy::none;
  return param.dtype() == DType::float16 ? RoundedCopy::float16 : RoundedCopy::bfloat16;
}

/// Updates, by one op, what has a gradient and is of the group and kind that `updates` says.
Optimizer::Updated Optimizer::updated(const State& state, const Tensor& steps,
                                      std::span<const Tensor> gradients, Updates updates) const {
  Updated result;
  for (std::size_t i = 0; i < state.slots.size(); ++i) {
    const Slot& slot = state.slots[i];
    if (!gradients[i] || slot.group != updates.group || slot.copies() != updates.copies) continue;
    const Tensor count = narrow(steps, 0, static_cast<std::int64_t>(i), 1);
    updates.parameters.push_back({slot.updated(), gradients[i], count, slot.state});
    updates.names.push_back(slot.name);
    result.slots.push_back(&slot);
  }
  if (!result.slots.empty()) result.values = apply_updates(updates);
  return result;
}

/// One more step for every parameter that has a gradient.
Tensor Optimizer::counted(const State& state, std::span<const Tensor> gradients) const {
  std::vector<float> counts;
  for (const Tensor& gradient : gradients) counts.push_back(gradient ? 1.0F : 0.0F);
  const bool all = std::find(counts.begin(), counts.end(), 0.0F) == counts.end();
  if (all) return add(state.steps, 1);
  const Shape shape = {static_cast<std::int64_t>(counts.size())};
  return add(state.steps, from_vector(counts, shape, state.steps.device()));
}

void Optimizer::zero_grad() {
  for (Slot& slot : state_.slots) slot.param.set_grad(Tensor());
}

// --- parameters, learning rates, state ----------------------------------------------------------

Optimizer::NamedTensors Optimizer::parameters() const {
  NamedTensors result;
  for (const Slot& slot : state_.slots) result.emplace_back(slot.name, slot.param);
  return result;
}

Tensor Optimizer::lr(std::size_t group) const {
  TENON_CHECK(group < state_.lr.size(), ValueError, "[{}] there is no group {}; there are {}",
              type_, group, state_.lr.size());
  return state_.lr[group];
}

void Optimizer::set_lr(double lr) {
  for (std::size_t group = 0; group < state_.lr.size(); ++group) set_lr(group, lr);
}

void Optimizer::set_lr(std::size_t group, double value) {
  detail::check_rate(type_.c_str(), "lr", value);
  const NoGradGuard no_grad;
  lr(group).copy_(full({}, value, {DType::float32, lr(group).device()}));
}

Optimizer::NamedTensors Optimizer::State::tensors() const {
  NamedTensors result;
  for (const Slot& slot : slots) {
    for (std::size_t k = 0; k < slot.state.size(); ++k) {
      result.emplace_back(slot.state_names[k] + "." + slot.name, slot.state[k]);
    }
    if (slot.master) result.emplace_back("master." + slot.name, slot.master);
  }
  for (std::size_t group = 0; group < lr.size(); ++group) {
    result.emplace_back("lr." + std::to_string(group), lr[group]);
  }
  return result;
}

Optimizer::NamedTensors Optimizer::state_tensors() const {
  const State state = followed();
  NamedTensors result = state.tensors();
  result.insert(result.begin(), {"step", state.steps});
  return result;
}

StateDict Optimizer::state_dict() const {
  const NoGradGuard no_grad;
  const State state = followed();
  StateDict result;
  for (std::size_t i = 0; i < state.slots.size(); ++i) {
    // A view: loading writes through it.
    result.add("step." + state.slots[i].name,
               narrow(state.steps, 0, static_cast<std::int64_t>(i), 1).squeeze(0));
  }
  for (auto& [name, tensor] : state.tensors()) result.add(name, tensor);
  return result;
}

LoadReport Optimizer::load_state_dict(const StateDict& state, const LoadOptions& options) {
  const ExclusiveUse::Scope use(in_use_, "[load_state_dict] the optimizer");
  follow_parameters();
  return detail::load_state(state_dict(), state, options, type_);
}

void Optimizer::refresh_master_weights() {
  const ExclusiveUse::Scope use(in_use_, "[refresh_master_weights] the optimizer");
  const NoGradGuard no_grad;
  follow_parameters();
  for (Slot& slot : state_.slots) {
    if (slot.master) slot.master.copy_(slot.param);
  }
}

}  // namespace tenon::nn
