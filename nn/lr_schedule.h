// Learning rates as functions of the step, which counts from 0. They hold no state: the same step
// gives the same rate, before and after a restart.
//
//   const nn::WarmupCosine rate{.lr = 3e-4, .warmup_steps = 100, .total_steps = 2000};
//   optimizer.set_lr(rate(step));
//
// They throw ValueError for a negative step and for settings outside of what stands beside them;
// rates and factors are finite and at least 0.
#pragma once

#include <cstdint>

namespace tenon::nn {

/// Rises linearly to `lr` over the warmup, then falls along half a cosine to `min_lr` at total_steps
/// and stays there (Loshchilov, Hutter, "SGDR", 2017, one cycle).
struct WarmupCosine {
  double lr = 1e-3;
  std::int64_t warmup_steps = 0;  // at least 0
  std::int64_t total_steps = 1;   // at least 1
  double min_lr = 0;

  double operator()(std::int64_t step) const;
};

/// `lr` times `gamma` for every whole `step_size` steps: PyTorch's StepLR.
struct StepDecay {
  double lr = 1e-3;
  std::int64_t step_size = 1;  // at least 1
  double gamma = 0.1;

  double operator()(std::int64_t step) const;
};

}  // namespace tenon::nn
