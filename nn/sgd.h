// Stochastic gradient descent with PyTorch's formulas and defaults; see nn/optimizer.h.
#pragma once

#include <vector>

#include "nn/optimizer.h"

namespace tenon::nn {

struct SgdOptions {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;                   ///< needs momentum and no dampening
  std::vector<std::string> no_decay = {};  ///< globs of names whose weight decay is 0
};

/// Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
/// learning", 2013, in PyTorch's form: the rate is applied after the momentum.
class SGD : public Optimizer {
 public:
  explicit SGD(NamedTensors parameters, const SgdOptions& options = {},
               const OptimizerOptions& common = {});
  explicit SGD(const std::vector<ParameterGroup<SgdOptions>>& groups,
               const OptimizerOptions& common = {});

 protected:
  std::vector<UpdatedParameter> apply_updates(const Updates& updates) const override;

 private:
  std::vector<SgdOptions> options_;  // one a group
};

}  // namespace tenon::nn
