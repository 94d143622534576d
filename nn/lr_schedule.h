// Learning rates as functions of the step, which counts from 0. They hold no state: the same step
// gives the same rate, before and after a restart.
//
//   const nn::WarmupCosine rate{.lr = 3e-4, .warmup_steps = 100, .total_steps = 2000};
//   optimizer.set_lr(rate(step));
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace tenon::nn {

/// Rises linearly to `lr` over the warmup, then falls along half a cosine to `min_lr` at total_steps
/// and stays there (Loshchilov, Hutter, "SGDR", 2017, one cycle).
struct WarmupCosine {
  double lr = 1e-3;
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 1;
  double min_lr = 0;

  double operator()(std::int64_t step) const {
    if (step < warmup_steps) {
      return lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    }
    const auto after = static_cast<double>(step - warmup_steps);
    const auto span = static_cast<double>(std::max<std::int64_t>(total_steps - warmup_steps, 1));
    const double progress = std::min(after / span, 1.0);
    return min_lr + (lr - min_lr) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
  }
};

/// `lr` times `gamma` for every whole `step_size` steps: PyTorch's StepLR.
struct StepDecay {
  double lr = 1e-3;
  std::int64_t step_size = 1;
  double gamma = 0.1;

  double operator()(std::int64_t step) const {
    return lr * std::pow(gamma, static_cast<double>(step / step_size));
  }
};

}  // namespace tenon::nn
