// Losses as modules: PyTorch's names, arguments and defaults. See tensor/functional.h for shapes.
#pragma once

#include "nn/module.h"

namespace tenon::nn {

/// Cross entropy of logits (N, C, d…) and int64 classes (N, d…).
class CrossEntropyLoss : public Module {
 public:
  explicit CrossEntropyLoss(const CrossEntropyOptions& call_options = {}) : options(call_options) {}
  Tensor forward(const Tensor& input, const Tensor& target) const {
    return cross_entropy(input, target, options);
  }
  bool is_leaf() const override { return true; }

  const CrossEntropyOptions options;
};

/// (input - target)², reduced.
class MSELoss : public Module {
 public:
  explicit MSELoss(Reduction how = Reduction::mean) : reduction(how) {}
  Tensor forward(const Tensor& input, const Tensor& target) const {
    return mse_loss(input, target, reduction);
  }
  bool is_leaf() const override { return true; }

  const Reduction reduction;
};

}  // namespace tenon::nn
