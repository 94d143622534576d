#include "nn/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "nn/optimizer.h"
#include "tensor/support/check.h"

namespace tenon::nn {
namespace {

void check_steps(const char* schedule, const char* what, std::int64_t steps, std::int64_t least) {
  TENON_CHECK(steps >= least, ValueError, "[{}] {} is {}; needed at least {}", schedule, what,
              steps, least);
}

}  // namespace

double WarmupCosine::operator()(std::int64_t step) const {
  detail::check_rate("WarmupCosine", "lr", lr);
  detail::check_rate("WarmupCosine", "min_lr", min_lr);
  check_steps("WarmupCosine", "warmup_steps", warmup_steps, 0);
  check_steps("WarmupCosine", "total_steps", total_steps, 1);
  check_steps("WarmupCosine", "the step", step, 0);
  if (step < warmup_steps) {
    return lr * (static_cast<double>(step) + 1) / static_cast<double>(warmup_steps);
  }
  const auto after = static_cast<double>(step - warmup_steps);
  const auto span = static_cast<double>(std::max<std::int64_t>(total_steps - warmup_steps, 1));
  const double progress = std::min(after / span, 1.0);
  return min_lr + (lr - min_lr) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

double StepDecay::operator()(std::int64_t step) const {
  detail::check_rate("StepDecay", "lr", lr);
  detail::check_rate("StepDecay", "gamma", gamma);
  check_steps("StepDecay", "step_size", step_size, 1);
  check_steps("StepDecay", "the step", step, 0);
  return lr * std::pow(gamma, static_cast<double>(step / step_size));
}

}  // namespace tenon::nn
