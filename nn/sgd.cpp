#include "nn/sgd.h"

#include "tensor/support/check.h"

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

std::vector<UpdatedParameter> SGD::apply_updates(const Updates& updates) const {
  const SgdOptions& options = options_[updates.group];
  return sgd_step(updates.parameters, updates.lr, updates.grad_scale,
                  {options.momentum, options.dampening, options.weight_decay, options.nesterov,
                   detail::matching_positions(updates.names, options.no_decay), updates.copies});
}

}  // namespace tenon::nn
