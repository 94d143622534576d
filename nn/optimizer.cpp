#include "nn/optimizer.h"

#include <cmath>
#include <unordered_set>

#include "nn/clip_grad.h"
#include "nn/detail/load_state.h"
#include "nn/detail/text.h"
#include "tensor/detail/check.h"
#include "tensor/interpreter.h"

namespace tenon::nn {

namespace detail {

std::vector<std::int64_t> matching_positions(const std::vector<std::string>& names,
                                             const std::vector<std::string>& globs) {
  std::vector<std::int64_t> positions;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (matches_any(globs, names[i])) positions.push_back(static_cast<std::int64_t>(i));
  }
  return positions;
}

void check_rate(const char* optimizer, const char* option, double value) {
  TENON_CHECK(std::isfinite(value) && value >= 0, ValueError,
              "[{}] {} is {}; needed a finite number, at least 0", optimizer, option, value);
}

}  // namespace detail

using detail::quote;

Optimizer::Optimizer(std::string type, std::vector<Group> groups, const OptimizerOptions& options)
    : type_(std::move(type)), options_(options) {
  detail::check_rate(type_.c_str(), "max_grad_norm", options.max_grad_norm);
  for (const Group& group : groups) {
    detail::check_rate(type_.c_str(), "lr", group.lr);
    for (const auto& [name, param] : group.parameters) {
      add_slot(name, param, lr_.size(), group.state_names);
    }
    const Device device = slots_.empty() ? kCpu : slots_[0].param.device();
    lr_.push_back(full({}, group.lr, {DType::float32, device}));
  }
  TENON_CHECK(!slots_.empty(), ValueError, "[{}] there are no parameters", type_);
  std::unordered_set<const void*> tensors;
  std::unordered_set<std::string> names;
  for (const Slot& slot : slots_) {
    const bool is_new = tensors.insert(slot.param.impl().get()).second;
    TENON_CHECK(is_new && names.insert(slot.name).second, ValueError,
                "[{}] parameter {} is given twice", type_, quote(slot.name));
    TENON_CHECK(slot.param.device() == slots_[0].param.device(), DeviceError,
                "[{}] parameter {} is on {}; the first one is on {}", type_, quote(slot.name),
                slot.param.device().to_string(), slots_[0].param.device().to_string());
  }
  steps_ =
      zeros({static_cast<std::int64_t>(slots_.size())}, {DType::float32, slots_[0].param.device()});
}

void Optimizer::add_slot(const std::string& name, const Tensor& param, std::size_t group,
                         const std::vector<std::string>& state_names) {
  TENON_CHECK(param.is_eager() && is_floating(param.dtype()), ValueError,
              "[{}] parameter {} is {}; needed a floating tensor with data", type_, quote(name),
              param.defined() ? param.spec().to_string() : "undefined");
  Slot slot{name, param, Tensor(), group, state_names, {}};
  const bool is_narrow = param.dtype() == DType::float16 || param.dtype() == DType::bfloat16;
  if (is_narrow && options_.master_weights) {
    const NoGradGuard no_grad;
    slot.master = cast(param, DType::float32);
  }
  const DType dtype = slot.master ? DType::float32 : param.dtype();
  for (std::size_t i = 0; i < state_names.size(); ++i) {
    slot.state.push_back(zeros(param.shape(), {dtype, param.device()}));
  }
  slots_.push_back(std::move(slot));
}

Tensor Optimizer::step() {
  std::vector<Tensor> gradients;
  for (const Slot& slot : slots_) gradients.push_back(slot.param.grad());
  return update(gradients);
}

Tensor Optimizer::update(std::span<const Tensor> gradients) {
  TENON_CHECK(gradients.size() == slots_.size(), ValueError,
              "[{}] {} gradients were given; needed one for each of {} parameters", type_,
              gradients.size(), slots_.size());
  const NoGradGuard no_grad;
  GlobalNorm global;
  if (options_.max_grad_norm > 0) {
    detail::require_gradients(parameters(), gradients);
    global = global_norm(gradients, options_.max_grad_norm);
  }
  count_steps(gradients);
  for (std::size_t group = 0; group < lr_.size(); ++group) {
    for (const auto copies : {RoundedCopy::none, RoundedCopy::float16, RoundedCopy::bfloat16}) {
      update_slots(gradients, {.lr = lr_[group],
                               .grad_scale = global.clip_coefficient,
                               .group = group,
                               .copies = copies});
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
void Optimizer::update_slots(std::span<const Tensor> gradients, Updates updates) {
  std::vector<Slot*> slots;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (!gradients[i] || slot.group != updates.group || slot.copies() != updates.copies) continue;
    const Tensor count = narrow(steps_, 0, static_cast<std::int64_t>(i), 1);
    updates.parameters.push_back({slot.updated(), gradients[i], count, slot.state});
    updates.names.push_back(slot.name);
    slots.push_back(&slot);
  }
  if (slots.empty()) return;
  const std::vector<UpdatedParameter> results = apply_updates(updates);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    slots[i]->updated().copy_(results.at(i).param);
    for (std::size_t k = 0; k < slots[i]->state.size(); ++k) {
      slots[i]->state[k].copy_(results[i].state.at(k));
    }
    if (slots[i]->master) slots[i]->param.copy_(results[i].copy);
  }
}

/// One more step for every parameter that has a gradient.
void Optimizer::count_steps(std::span<const Tensor> gradients) {
  std::vector<float> counts;
  for (const Tensor& gradient : gradients) counts.push_back(gradient ? 1.0F : 0.0F);
  const bool all = std::find(counts.begin(), counts.end(), 0.0F) == counts.end();
  const Shape shape = {static_cast<std::int64_t>(counts.size())};
  steps_.copy_(all ? add(steps_, 1) : add(steps_, from_vector(counts, shape, steps_.device())));
}

void Optimizer::zero_grad() {
  for (Slot& slot : slots_) slot.param.set_grad(Tensor());
}

Optimizer::NamedTensors Optimizer::parameters() const {
  NamedTensors result;
  for (const Slot& slot : slots_) result.emplace_back(slot.name, slot.param);
  return result;
}

Tensor Optimizer::lr(std::size_t group) const {
  TENON_CHECK(group < lr_.size(), ValueError, "[{}] there is no group {}; there are {}", type_,
              group, lr_.size());
  return lr_[group];
}

void Optimizer::set_lr(double lr) {
  for (std::size_t group = 0; group < lr_.size(); ++group) set_lr(group, lr);
}

void Optimizer::set_lr(std::size_t group, double value) {
  detail::check_rate(type_.c_str(), "lr", value);
  const NoGradGuard no_grad;
  lr(group).copy_(full({}, value, {DType::float32, lr(group).device()}));
}

Optimizer::NamedTensors Optimizer::slot_tensors() const {
  NamedTensors result;
  for (const Slot& slot : slots_) {
    for (std::size_t k = 0; k < slot.state.size(); ++k) {
      result.emplace_back(slot.state_names[k] + "." + slot.name, slot.state[k]);
    }
    if (slot.master) result.emplace_back("master." + slot.name, slot.master);
  }
  for (std::size_t group = 0; group < lr_.size(); ++group) {
    result.emplace_back("lr." + std::to_string(group), lr_[group]);
  }
  return result;
}

Optimizer::NamedTensors Optimizer::state_tensors() const {
  NamedTensors result = slot_tensors();
  result.insert(result.begin(), {"step", steps_});
  return result;
}

StateDict Optimizer::state_dict() const {
  const NoGradGuard no_grad;
  StateDict state;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    // A view: loading writes through it.
    state.add("step." + slots_[i].name,
              narrow(steps_, 0, static_cast<std::int64_t>(i), 1).squeeze(0));
  }
  for (auto& [name, tensor] : slot_tensors()) state.add(name, tensor);
  return state;
}

LoadReport Optimizer::load_state_dict(const StateDict& state, const LoadOptions& options) {
  return detail::load_state(state_dict(), state, options, type_);
}

void Optimizer::refresh_master_weights() {
  const NoGradGuard no_grad;
  for (Slot& slot : slots_) {
    if (slot.master) slot.master.copy_(slot.param);
  }
}

}  // namespace tenon::nn
