#include "nn/adam.h"

#include "tensor/support/check.h"

namespace tenon::nn {
namespace {

void check_options(const char* type, const AdamOptions& options) {
  for (const double beta : {options.beta1, options.beta2}) {
    TENON_CHECK(beta >= 0 && beta < 1, ValueError, "[{}] a beta is {}; needed 0 <= beta < 1", type,
                beta);
  }
  detail::check_rate(type, "eps", options.eps);
  detail::check_rate(type, "weight_decay", options.weight_decay);
}

std::vector<ParameterGroup<AdamOptions>> as_adam(
    const std::vector<ParameterGroup<AdamWOptions>>& groups) {
  std::vector<ParameterGroup<AdamOptions>> result;
  for (const auto& [parameters, o] : groups) {
    result.push_back({parameters, {o.lr, o.beta1, o.beta2, o.eps, o.weight_decay, o.no_decay}});
  }
  return result;
}

}  // namespace

Adam::Adam(NamedTensors parameters, const AdamOptions& options, const OptimizerOptions& common)
    : Adam(std::vector<ParameterGroup<AdamOptions>>{{std::move(parameters), options}}, common) {}

Adam::Adam(const std::vector<ParameterGroup<AdamOptions>>& groups, const OptimizerOptions& common)
    : Adam("Adam", groups, false, common) {}

Adam::Adam(const char* type, const std::vector<ParameterGroup<AdamOptions>>& groups, bool decoupled,
           const OptimizerOptions& common)
    : Optimizer(
          type,
          [&] {
            std::vector<Group> result;
            for (const auto& [parameters, options] : groups) {
              check_options(type, options);
              result.push_back({parameters, options.lr, {"exp_avg", "exp_avg_sq"}});
            }
            return result;
          }(),
          common),
      decoupled_(decoupled) {
  for (const auto& group : groups) options_.push_back(group.options);
}

std::vector<UpdatedParameter> Adam::apply_updates(const Updates& updates) const {
  const AdamOptions& options = options_[updates.group];
  return adam_step(updates.parameters, updates.lr, updates.grad_scale,
                   {options.beta1, options.beta2, options.eps, options.weight_decay, decoupled_,
                    detail::matching_positions(updates.names, options.no_decay), updates.copies});
}

AdamW::AdamW(NamedTensors parameters, const AdamWOptions& options, const OptimizerOptions& common)
    : AdamW(std::vector<ParameterGroup<AdamWOptions>>{{std::move(parameters), options}}, common) {}

AdamW::AdamW(const std::vector<ParameterGroup<AdamWOptions>>& groups,
             const OptimizerOptions& common)
    : Adam("AdamW", as_adam(groups), true, common) {}

}  // namespace tenon::nn
