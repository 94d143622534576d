#include "nn/sgd.h"

#include "tensor/detail/check.h"
#include "tensor/ops/optimizer_steps.h"

namespace tenon::nn {
namespace {

void check_options(const SgdOptions& options) {
  detail::check_rate("SGD", "momentum", options.momentum);
  detail::check_rate("SGD", "weight_decay", options.weight_decay);
  TENON_CHECK(!options.nesterov || (options.momentum > 0 && options.dampening == 0), ValueError,
              "[SGD] nesterov with momentum {} and dampening {}; needed momentum > 0 and no "
              "dampening",
              options.momentum, options.dampening);
}

}  // namespace

SGD::SGD(NamedTensors parameters, const SgdOptions& options, const OptimizerOptions& common)
    : SGD(std::vector<ParameterGroup<SgdOptions>>{{std::move(parameters), options}}, common) {}

SGD::SGD(const std::vector<ParameterGroup<SgdOptions>>& groups, const OptimizerOptions& common)
    : Optimizer(
          "SGD",
          [&] {
            std::vector<Group> result;
            for (const auto& [parameters, options] : groups) {
              check_options(options);
              result.push_back({parameters, options.lr, {}});
              if (options.momentum != 0) result.back().state_names = {"momentum_buffer"};
            }
            return result;
          }(),
          common) {
  for (const auto& group : groups) options_.push_back(group.options);
}

std::vector<Tensor> SGD::apply_update(const Update& update) const {
  const SgdOptions& options = options_[update.group];
  const bool has_buffer = !update.state.empty();
  const SgdStepResult result = sgd_step(
      update.param, update.gradient, has_buffer ? update.state[0] : Tensor(),
      has_buffer ? update.step : Tensor(), update.lr, update.grad_scale,
      {options.momentum, options.dampening,
       detail::decay_of(update.name, options.weight_decay, options.no_decay), options.nesterov});
  if (!has_buffer) return {result.param};
  return {result.param, result.momentum_buffer};
}

}  // namespace tenon::nn
